"""Pretraining on simulated heads: a ResNet50 learns volumes, severity and age from slices whose truth is known."""
