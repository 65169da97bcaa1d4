"""Reports: tables that become HTML, CSV and LaTeX (`tables`), and self-contained pages of them (`page`)."""
