"""A page to watch a run, served to browsers, and the same page as a file at its end. Reads reports, changes nothing."""
