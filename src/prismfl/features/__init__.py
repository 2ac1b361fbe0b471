"""The frozen feature networks that training matches and metrics judge by."""
