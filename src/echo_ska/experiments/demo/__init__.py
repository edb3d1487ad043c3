"""`echo-ska demo`, and the experiments on its models: seeds, learning rates, what each part of the recipe is worth."""
