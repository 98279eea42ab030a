"""Files of public benchmarks as rows: TSV, parquet and JSON, and the pictures that belong to them."""
