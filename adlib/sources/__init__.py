"""Where scans come from: every source makes the same manifest, `reading.read_source` chooses among them."""
