v.rescale_floats sp[64], acc[0], sp[0], cols=17  ;~ operand cols: wanted at most C = 16 on edge-16, found 17
halt
