"""Values that know no graph: element types, diagnostics and their codes, the cache folder."""
