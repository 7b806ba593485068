// One 128-bit word (ISA.md, "Words" and the reference) with the registers of its issue, resolved to what the matrix unit needs.
// Addresses keep their low 32 bits; tokens are not looked at.

typedef struct packed {
    logic        is_pass;
    logic        scaled;
    // Preload.
    logic        packed_codes;
    logic [31:0] tile;
    logic [31:0] scales;
    logic [9:0]  n;
    // Both: rows of the tile.
    logic [9:0]  k;
    // Pass.
    logic [31:0] a;
    logic [31:0] a_stride;
    logic [31:0] acc;
    logic [31:0] sums;
    logic [13:0] rows;
    logic        accumulate;
    logic        append;
} matrix_op_t;

module matrix_word (
    input  logic [127:0]       word,
    input  logic [31:0][63:0]  regs,
    output logic               is_halt,
    output logic               is_li,
    output logic               is_matrix,
    // `sync` of another queue: issuing takes its cycle, what it waits for is not our matter.
    output logic               is_elsewhere,
    output logic [4:0]         li_rd,
    output logic [63:0]        li_value,
    output matrix_op_t         op
);
    localparam logic [6:0] HALT = 7'h01;
    localparam logic [6:0] LI = 7'h02;
    localparam logic [6:0] SYNC = 7'h10;
    localparam logic [6:0] PRELOAD = 7'h20;
    localparam logic [6:0] PRELOAD_SCALED = 7'h21;
    localparam logic [6:0] PASS = 7'h22;
    localparam logic [6:0] PASS_SCALED = 7'h23;

    // sp and w: base register, then the constant in units of 32 bytes.
    function automatic logic [31:0] bytes_at(input logic [19:0] field, input logic [31:0][63:0] r);
        return r[field[4:0]][31:0] + {12'b0, field[19:5], 5'b0};
    endfunction

    // acc: base register, then the constant in rows.
    function automatic logic [31:0] row_at(input logic [16:0] field, input logic [31:0][63:0] r);
        return r[field[4:0]][31:0] + {20'b0, field[16:5]};
    endfunction

    // size9 and size13: a number, or with the top bit a register.
    function automatic logic [9:0] size9(input logic [9:0] field, input logic [31:0][63:0] r);
        return field[9] ? r[field[4:0]][9:0] : {1'b0, field[8:0]};
    endfunction

    function automatic logic [13:0] size13(input logic [13:0] field, input logic [31:0][63:0] r);
        return field[13] ? r[field[4:0]][13:0] : {1'b0, field[12:0]};
    endfunction

    logic [6:0] opcode;
    assign opcode = word[6:0];
    assign is_halt = opcode == HALT;
    assign is_li = opcode == LI;
    assign is_matrix = opcode >= PRELOAD && opcode <= PASS_SCALED;
    // Queues: sequencer (0), load, store, matrix (3), vector, route.
    assign is_elsewhere = opcode == SYNC && word[29:27] != 3'd0 && word[29:27] != 3'd3;
    assign li_rd = word[31:27];
    assign li_value = word[95:32];

    logic [4:0] stride_reg;
    always_comb begin
        op = '0;
        stride_reg = '0;
        case (opcode)
            PRELOAD: begin
                op.packed_codes = word[27];
                op.tile = bytes_at(word[47:28], regs);
                op.k = size9(word[57:48], regs);
                op.n = size9(word[67:58], regs);
            end
            PRELOAD_SCALED: begin
                op.scaled = 1'b1;
                op.packed_codes = word[27];
                op.tile = bytes_at(word[47:28], regs);
                op.scales = bytes_at(word[67:48], regs);
                op.k = size9(word[77:68], regs);
                op.n = size9(word[87:78], regs);
            end
            PASS: begin
                op.is_pass = 1'b1;
                op.a = bytes_at(word[46:27], regs);
                op.acc = row_at(word[63:47], regs);
                op.rows = size13(word[77:64], regs);
                op.k = size9(word[87:78], regs);
                stride_reg = word[92:88];
                op.accumulate = word[93];
            end
            PASS_SCALED: begin
                op.is_pass = 1'b1;
                op.scaled = 1'b1;
                op.a = bytes_at(word[46:27], regs);
                op.sums = row_at(word[63:47], regs);
                op.acc = row_at(word[80:64], regs);
                op.rows = size13(word[94:81], regs);
                op.k = size9(word[104:95], regs);
                stride_reg = word[109:105];
                op.accumulate = word[110];
                op.append = word[111];
            end
            default: ;
        endcase
        // A stride that is left out is dense.
        op.a_stride = stride_reg == 0 ? {22'b0, op.k} : regs[stride_reg][31:0];
    end
endmodule
