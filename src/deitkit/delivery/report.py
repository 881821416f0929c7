def write_report(run):
    return run
