"""Named parameters as flat float32 fragments, and the digest that compares them. Knows no peers and no rounds."""
