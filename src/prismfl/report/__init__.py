"""The HTML report of one run or several: `runs` reads run folders, `figures` draws, `page` writes the page."""
