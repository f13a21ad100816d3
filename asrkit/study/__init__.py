"""A study: recipes x axes x encoders x learning rates x seeds -> one folder of cells that differ in the named axes
only."""
