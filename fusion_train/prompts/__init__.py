"""From the words of a clip, a task and an answer to token ids: the one tokenisation of training, evaluation, export."""
