"""The rules in a plain model, and a machine of any actions in any order that holds the product against it."""
