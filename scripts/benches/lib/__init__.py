"""What benches have in common: processes, links, statistics, tables, plots, records; not what is measured."""
