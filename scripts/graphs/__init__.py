"""The shipped workflows: their description, and the forms that it takes."""
