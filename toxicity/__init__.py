"""What the web process and the training process share: the model, what it learned from, its versions.

Not here: Flask (backend/), RQ workers (worker/). Neither of those is ever imported from this package.
"""

from toxicity.settings import prepare_tensorflow

prepare_tensorflow()  # before any module of this package imports TensorFlow
