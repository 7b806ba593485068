m.preload i8, w[0], k=17, n=16  ;~ operand k: wanted at most R = 16 on edge-16, found 17
halt
