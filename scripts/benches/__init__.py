"""What is measured of decentral, a module for each bench; run by the scripts of the same name beside this package."""
