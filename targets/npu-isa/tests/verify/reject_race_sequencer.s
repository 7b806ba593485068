li r1, 4
r.iota sp[0], count=r1
lds r2, sp[0], max=3  ;~ operand src reads sp[0]: wanted tokens that order it behind instruction 1, `r.iota sp[0], count=r1`, which writes that, found none
halt
