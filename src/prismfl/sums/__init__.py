"""Secure sums: what a server learns of the sites' vectors is their sum, and nothing of one site."""
