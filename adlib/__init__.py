"""A leak-proof, reproducible study of T1w brain MRI: CN, MCI, LMCI or AD by a ResNet50.

One room per notebook: audit, preprocess, training, evaluation, classify; shared: study, imaging, parallel, phantom,
sources, figures, report.
Start with notebooks/03_training_resnet50.ipynb and `adlib.study.params`.
"""
