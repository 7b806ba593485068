m.preload i8, w[0], k=16, n=16
m.pass sp[0], acc[0], rows=1, k=8  ;~ operand k: wanted k of the tile, 16, found 8
halt
