"""What every other room of the package stands on: arithmetic, checks, and the choice of hard negatives."""
