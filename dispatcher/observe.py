def refusal(code, **f):
    pass
