"""From a folder of clips to a scored model, by the ordinary commands one after another.

    choose encoders -> import -> plan -> extract -> compare fusions, or train with LoRA -> score -> export -> predict

`request` is the request and the record of its steps, `encoder_choice` the encoders that a machine carries,
`steps` the command lines, `report` the page. The command line runs the steps.
"""
