m.preload i4, w[0], k=16, n=17  ;~ operand n: wanted at most C = 16 on edge-16, found 17
halt
