def verdict(student, teacher, control, val_images):
    return ""
