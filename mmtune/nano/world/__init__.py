"""The nano world: scenes of a few coloured shapes, what is asked about them and how they are drawn."""
