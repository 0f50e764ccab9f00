"""Files in an object store or behind a web address: which there are, and their bytes by ranges."""
