"""JSON records in files: lines of objects, or one array of them."""
