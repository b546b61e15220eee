"""What is measured to see whether rows were forgotten, and whether all else was kept."""
