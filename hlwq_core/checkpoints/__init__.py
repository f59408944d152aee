"""From a folder of files to layers: finding, opening, recognising, and what is missing."""
