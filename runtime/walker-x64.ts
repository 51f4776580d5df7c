/** The walker for x86-64: about 200 bytes of machine code that execute a table of records. @see record.ts */
import { operationCode, recordBytes, type WalkerLayout } from "./record.ts";

/** Assembles bytes with forward and backward references to labels, all of them 32 bits wide. */
class Assembler {
  readonly #bytes: number[] = [];
  readonly #labels = new Map<string, number>();
  readonly #references: { readonly at: number; readonly label: string }[] = [];

  emit(...bytes: number[]): void {
    this.#bytes.push(...bytes);
  }

  emit32(value: number): void {
    this.emit(value & 0xff, (value >>> 8) & 0xff, (value >>> 16) & 0xff, (value >>> 24) & 0xff);
  }

  label(name: string): void {
    this.#labels.set(name, this.#bytes.length);
  }

  /** An opcode followed by a 32-bit displacement to `label`. */
  branch(opcode: readonly number[], label: string): void {
    this.emit(...opcode);
    this.#references.push({ at: this.#bytes.length, label });
    this.emit32(0);
  }

  finish(): Uint8Array {
    const code = Buffer.from(this.#bytes);
    for (const { at, label } of this.#references) {
      const target = this.#labels.get(label);
      if (target === undefined) throw new Error(`No label "${label}"`);
      code.writeInt32LE(target - (at + 4), at);
    }
    return code;
  }
}

const jmp = [0xe9];
const je = [0x0f, 0x84];
const jne = [0x0f, 0x85];
const jae = [0x0f, 0x83];
const jnc = [0x0f, 0x83];
const jle = [0x0f, 0x8e];

/** Returns position-independent code; it begins at its first byte and never returns. */
export function walkerX64(
  layout: WalkerLayout,
  numbers: { readonly write: number; readonly exitGroup: number },
): Uint8Array {
  const a = new Assembler();
  a.emit(0xbb); // mov ebx, table
  a.emit32(layout.tableAddress);
  a.emit(0x41, 0xbf); // mov r15d, scratch
  a.emit32(layout.scratchAddress);

  a.label("next");
  a.emit(0x0f, 0xb7, 0x4b, 0x02); // movzx ecx, word [rbx+2]
  a.emit(0x48, 0x8d, 0x73, 0x08); // lea rsi, [rbx+8]
  a.emit(0x4c, 0x89, 0xff); // mov rdi, r15
  a.emit(0xba); // mov edx, 6
  a.emit32(6);
  a.label("argument");
  a.emit(0x48, 0xad); // lodsq
  a.emit(0xd1, 0xe9); // shr ecx, 1
  a.branch(jnc, "direct");
  a.emit(0x8b, 0x00); // mov eax, [rax]
  a.label("direct");
  a.emit(0x48, 0xab); // stosq
  a.emit(0xff, 0xca); // dec edx
  a.branch(jne, "argument");

  a.emit(0x0f, 0xb7, 0x03); // movzx eax, word [rbx]
  a.emit(0x85, 0xc0); // test eax, eax
  a.branch(jne, "special");
  a.emit(0x8b, 0x43, 0x04); // mov eax, [rbx+4]
  a.emit(0x49, 0x8b, 0x3f); // mov rdi, [r15]
  a.emit(0x49, 0x8b, 0x77, 0x08); // mov rsi, [r15+8]
  a.emit(0x49, 0x8b, 0x57, 0x10); // mov rdx, [r15+16]
  a.emit(0x4d, 0x8b, 0x57, 0x18); // mov r10, [r15+24]
  a.emit(0x4d, 0x8b, 0x47, 0x20); // mov r8, [r15+32]
  a.emit(0x4d, 0x8b, 0x4f, 0x28); // mov r9, [r15+40]
  a.emit(0x0f, 0x05); // syscall
  a.emit(0x48, 0x3d); // cmp rax, -4095
  a.emit32(-4095);
  a.branch(jae, "failed");
  a.emit(0x48, 0x8b, 0x53, 0x38); // mov rdx, [rbx+56]
  a.emit(0x48, 0x85, 0xd2); // test rdx, rdx
  a.branch(je, "stored");
  a.emit(0x89, 0x02); // mov [rdx], eax
  a.label("stored");
  a.emit(0x48, 0x85, 0xc0); // test rax, rax
  a.branch(jle, "step");
  a.emit(0x48, 0x8b, 0x53, 0x40); // mov rdx, [rbx+64]
  a.emit(0x48, 0x85, 0xd2); // test rdx, rdx
  a.branch(je, "step");
  a.label("jump");
  a.emit(0x48, 0x01, 0xd3); // add rbx, rdx
  a.branch(jmp, "next");
  a.label("step");
  a.emit(0x48, 0x83, 0xc3, recordBytes); // add rbx, 80
  a.branch(jmp, "next");

  a.label("failed");
  a.emit(0x89, 0xc2); // mov edx, eax
  a.emit(0xf7, 0xda); // neg edx
  for (let i = 0; i < 4; i++) {
    a.emit(0x66, 0x3b, 0x53, 72 + 2 * i); // cmp dx, [rbx+72+2i]
    a.branch(je, "step");
  }
  a.label("fail");
  a.emit(0xbe); // mov esi, message
  a.emit32(layout.failMessageAddress);
  a.emit(0x89, 0x56, 0x04); // mov [rsi+4], edx
  a.emit(0x48, 0x89, 0x5e, 0x08); // mov [rsi+8], rbx
  a.emit(0xbf); // mov edi, status
  a.emit32(layout.statusFd);
  a.emit(0xba); // mov edx, 16
  a.emit32(16);
  a.emit(0xb8); // mov eax, write
  a.emit32(numbers.write);
  a.emit(0x0f, 0x05); // syscall
  a.emit(0xbf); // mov edi, 127
  a.emit32(127);
  a.emit(0xb8); // mov eax, exit_group
  a.emit32(numbers.exitGroup);
  a.emit(0x0f, 0x05); // syscall
  a.emit(0x0f, 0x0b); // ud2

  a.label("special");
  a.emit(0x83, 0xf8, operationCode.decimal); // cmp eax, decimal
  a.branch(jne, "compare");
  a.emit(0x41, 0x8b, 0x07); // mov eax, [r15]
  a.emit(0x49, 0x8b, 0x7f, 0x08); // mov rdi, [r15+8]
  a.emit(0xb9); // mov ecx, 10
  a.emit32(10);
  a.label("digit");
  a.emit(0x31, 0xd2); // xor edx, edx
  a.emit(0xf7, 0xf1); // div ecx
  a.emit(0x80, 0xc2, 0x30); // add dl, '0'
  a.emit(0x48, 0xff, 0xcf); // dec rdi
  a.emit(0x88, 0x17); // mov [rdi], dl
  a.emit(0x85, 0xc0); // test eax, eax
  a.branch(jne, "digit");
  a.branch(jmp, "step");
  a.label("compare");
  a.emit(0x83, 0xf8, operationCode.jumpIfNotEqual); // cmp eax, jump if not equal
  a.emit(0x49, 0x8b, 0x17); // mov rdx, [r15]
  a.branch(jne, "fail"); // the errno is argument 0
  a.emit(0x49, 0x3b, 0x57, 0x08); // cmp rdx, [r15+8]
  a.branch(je, "step");
  a.emit(0x48, 0x8b, 0x53, 0x40); // mov rdx, [rbx+64]
  a.branch(jmp, "jump");
  return a.finish();
}
