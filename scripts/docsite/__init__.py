"""What makes the site of README and ``docs`` (``scripts/docs``), and the references in it that no hand has written."""
