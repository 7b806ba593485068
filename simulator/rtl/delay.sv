// A value `CYCLES` cycles later; none: at once.

module delay #(
    parameter int WIDTH = 1,
    parameter int CYCLES = 1
) (
    input  logic             clock,
    input  logic [WIDTH-1:0] in,
    output logic [WIDTH-1:0] out
);
    if (CYCLES == 0) begin : none
        assign out = in;
    end else if (CYCLES == 1) begin : one
        always_ff @(posedge clock) out <= in;
    end else begin : some
        logic [CYCLES*WIDTH-1:0] line;
        always_ff @(posedge clock) line <= {line[(CYCLES-1)*WIDTH-1:0], in};
        assign out = line[CYCLES*WIDTH-1-:WIDTH];
    end
endmodule
