/* Payload guest: a whole "operating system" that fills its memory exactly as its command line says.
 *
 * QEMU loads it as a multiboot kernel (the domain's <kernel>), the command line is the domain's <cmdline>.
 * It writes whole pages, says so on the first serial port and then sleeps, so that KSM counters can be
 * compared with exact page counts. Options, all decimal numbers, after the word "virtksm-guest":
 *
 *   common=MiB zero=MiB own=MiB   pages equal in all guests, zero pages, pages that no other seed has
 *   seed=N                        what makes `own` pages differ from other guests'
 *   image=N                       common pages are equal among guests of the same image only (default 0)
 *   slow=MiB                      fill at so many MiB a second (default: as fast as it can)
 *   rewrite=N                     once settled, rewrite N own pages a second with fresh content, for ever
 *   rewrite_common=N              the same with common pages: new content, but the same in every guest
 *   grow=MiB                      once settled, add so much memory a minute until memory is full: grow_zero= MiB of
 *   grow_after=S grow_zero=MiB    zero pages, then own ones, beginning grow_after= seconds after settling
 *   drift=MiB drift_s=S           once settled, after drift_after= and again after drift_again= seconds (0: never again),
 *   drift_after=S drift_again=S   replace so many own pages, in turn, within S seconds, by what all guests have
 *   balloon=1                     answer virtio balloon requests, so that libvirt sends balloon events; the
 *                                 "inflated" pages are not given back, the guest's memory stays as it is
 *   balloon=2                     report another size all the time, as a hostile guest may
 *   reboot_after=S, off_after=S   reset or power off S seconds after settling
 *
 * One page's content depends on (kind, owner, index, generation) alone, and these four stand in its first
 * words: two pages are equal exactly when these are, never by accident. Anything wrong (unknown option, not
 * enough memory) is one line on the serial port, then halt. It uses no C library and not even libgcc. */

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

enum { PAGE_WORDS = 1024, PAGES_PER_MIB = 256, FIRST_MIB = 2 };
enum { COMMON = 0x636f6d6d, OWN = 0x6f776e21, DRIFTED = 0x64726966 }; /* kinds of pages; never 0, so that no page is a zero page */
enum { SERIAL = 0x3f8, PIT = 0x40, TICK_HZ = 20, PIT_HZ = 1193182 };

extern char payload_end[];
static u32 tsc_per_ms;
static u64 tsc_at_boot;

/* Multiboot header (flag 2: tell the memory size), and the entry point. Interrupts need a GDT of our own:
 * the loader's may be gone. Vector 0x20 is the timer, whose only work is to end a hlt. */
__asm__(
    ".section .multiboot,\"a\"\n .balign 4\n .long 0x1badb002, 2, -(0x1badb002 + 2)\n"
    ".text\n .globl _start\n"
    "_start: cli\n mov $stack_top, %esp\n lgdt gdt_pointer\n ljmp $8, $1f\n"
    "1: mov $16, %cx\n mov %cx, %ds\n mov %cx, %es\n mov %cx, %ss\n"
    " push %ebx\n push %eax\n call boot\n"
    "timer_entry: push %eax\n mov $0x20, %al\n out %al, $0x20\n pop %eax\n iret\n"
    "fault_entry: call fault\n"
    ".data\n .balign 8\n gdt: .quad 0, 0x00cf9a000000ffff, 0x00cf92000000ffff\n"
    "gdt_pointer: .word 23\n .long gdt\n"
    ".bss\n .balign 16\n .skip 8192\n stack_top:\n .text\n");
extern void timer_entry(void), fault_entry(void);

static void out8(u16 port, u8 value) { __asm__ volatile("outb %0, %1" ::"a"(value), "Nd"(port)); }
static void out32(u16 port, u32 value) { __asm__ volatile("outl %0, %1" ::"a"(value), "Nd"(port)); }
static void out16(u16 port, u16 value) { __asm__ volatile("outw %0, %1" ::"a"(value), "Nd"(port)); }
static u8 in8(u16 port)
{
    u8 value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}
static u32 in32(u16 port)
{
    u32 value;
    __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}
static u64 tsc(void)
{
    u64 value;
    __asm__ volatile("rdtsc" : "=A"(value));
    return value;
}

/* 64 by 32 bits in two steps: the compiler's own division would need libgcc. */
static u64 divide(u64 dividend, u32 divisor, u32 *rest)
{
    u32 high = (u32)(dividend >> 32), low = (u32)dividend, remainder = high % divisor, quotient;
    __asm__("divl %4" : "=a"(quotient), "=d"(remainder) : "0"(low), "1"(remainder), "r"(divisor));
    if (rest)
        *rest = remainder;
    return (u64)(high / divisor) << 32 | quotient;
}

/* ---- the serial port ---- */

static void print(const char *text)
{
    for (; *text; text++) {
        while (!(in8(SERIAL + 5) & 0x20))
            ;
        out8(SERIAL, (u8)*text);
    }
}
static void print_number(u32 value)
{
    char digits[11], *at = digits + 10;
    *at = 0;
    do
        *--at = (char)('0' + value % 10);
    while (value /= 10);
    print(at);
}

/* Stop for good, at no cost: all interrupts masked, and the timer in one-shot mode, since a BIOS timer that
 * ticks on would wake QEMU 18 times a second. */
static void __attribute__((noreturn)) halt(void)
{
    out8(0x21, 0xff);
    out8(0xa1, 0xff);
    out8(PIT + 3, 0x30);
    for (;;)
        __asm__ volatile("cli; hlt");
}
static void __attribute__((noreturn)) fail(const char *what, const char *which)
{
    print("virtksm-guest: error ");
    print(what);
    print(which);
    print("\n");
    halt();
}
__attribute__((used)) void fault(void) { fail("processor exception", ""); }

/* ---- time: the timestamp counter, calibrated; the timer interrupt only ends a hlt ---- */

/* Count the TSC during 10 ms of PIT channel 2. Being descheduled by the host only ever lengthens what is
 * counted, so the least of five is the true one. A paused guest's TSC stands still: no burst afterwards. */
static void calibrate(void)
{
    u64 least = ~0ull;
    for (int round = 0; round < 5; round++) {
        out8(0x61, (u8)(in8(0x61) & ~3u));
        out8(PIT + 3, 0xb0);
        out8(PIT + 2, (PIT_HZ / 100) & 0xff);
        u64 start = tsc();
        out8(PIT + 2, (PIT_HZ / 100) >> 8);
        out8(0x61, (u8)(in8(0x61) | 1));
        while (!(in8(0x61) & 0x20))
            ;
        u64 taken = tsc() - start;
        if (taken < least)
            least = taken;
    }
    tsc_per_ms = (u32)divide(least, 10, 0);
    tsc_at_boot = tsc();
}
static u64 now_ms(void) { return divide(tsc() - tsc_at_boot, tsc_per_ms, 0); }

static void start_timer(void)
{
    static struct { u16 low, selector, flags, high; } __attribute__((packed)) idt[0x30];
    static struct { u16 size; void *at; } __attribute__((packed)) pointer = {sizeof idt - 1, idt};
    for (int i = 0; i < 0x30; i++) { /* a spurious interrupt has vector 0x27 or 0x2f */
        u32 entry = (u32)(i >= 0x20 ? timer_entry : fault_entry);
        idt[i].low = (u16)entry, idt[i].high = (u16)(entry >> 16), idt[i].selector = 8, idt[i].flags = 0x8e00;
    }
    __asm__ volatile("lidt %0" ::"m"(pointer));
    out8(0x20, 0x11), out8(0x21, 0x20), out8(0x21, 4), out8(0x21, 1), out8(0x21, 0xfe);
    out8(0xa0, 0x11), out8(0xa1, 0x28), out8(0xa1, 2), out8(0xa1, 1), out8(0xa1, 0xff);
    out8(PIT + 3, 0x34);
    out8(PIT, (PIT_HZ / TICK_HZ) & 0xff);
    out8(PIT, (PIT_HZ / TICK_HZ) >> 8);
}
static void doze(void) { __asm__ volatile("sti; hlt; cli" ::: "memory"); }

static u32 rtc(u8 reg)
{
    out8(0x70, reg);
    u32 value = in8(0x71);
    return (value >> 4) * 10 + (value & 15);
}
/* Second of the month, right at its beginning: the clock that all guests share. */
static u32 wall_second(void)
{
    for (u32 before = rtc(0); rtc(0) == before;)
        ;
    return rtc(0) + 60 * (rtc(2) + 60 * (rtc(4) + 24 * rtc(7)));
}

/* ---- pages ---- */

static void write_page(u32 number, u32 kind, u32 owner, u32 index, u32 generation)
{
    u32 *page = (u32 *)((FIRST_MIB << 20) + number * 4096);
    u32 x = index * 0x9e3779b1u ^ generation * 0x85ebca77u ^ owner * 0xc2b2ae3du ^ kind;
    page[0] = index, page[1] = generation, page[2] = owner, page[3] = kind;
    for (int i = 4; i < PAGE_WORDS; i++) {
        x = (x ^ x >> 15) * 0x2c1b3c6du + 0x297a2d39u;
        page[i] = x;
    }
}
static void zero_page(u32 number)
{
    u32 *page = (u32 *)((FIRST_MIB << 20) + number * 4096), count = PAGE_WORDS;
    __asm__ volatile("rep stosl" : "+D"(page), "+c"(count) : "a"(0) : "memory");
}

/* ---- the balloon: legacy virtio-pci, whose configuration begins at 20 in the device's ports ---- */

static u32 pci_read(u32 slot, u32 reg)
{
    out32(0xcf8, 0x80000000u | slot << 11 | reg);
    return in32(0xcfc);
}
/* The balloon's configuration port, or 0 when bus 0 has no balloon. */
static u16 find_balloon(void)
{
    for (u32 slot = 0; slot < 32; slot++)
        if (pci_read(slot, 0) == 0x10021af4)
            return (u16)((pci_read(slot, 0x10) & ~3u) + 20);
    return 0;
}
/* Report the size asked for as reached: QEMU then tells libvirt of a change. */
static void answer_balloon(u16 port)
{
    u32 asked = in32(port);
    if (asked != in32(port + 4))
        out32(port + 4, asked);
}
/* Report another size every 50 ms, whatever was asked for. QEMU tells libvirt once a second. */
static void chatter(u16 port, u64 ms)
{
    out32(port + 4, in32(port) - ((u32)divide(ms, 50, 0) & 255));
}

/* ---- options ---- */

static struct option { const char *name; u32 most, value; } options[] = {
    {"common", 4095, 0}, {"zero", 4095, 0}, {"own", 4095, 0}, {"seed", 0xffffffff, 0}, {"slow", 100000, 0},
    {"rewrite", 1000000, 0}, {"rewrite_common", 1000000, 0}, {"grow", 100000, 0},
    {"reboot_after", 1000000, 0}, {"off_after", 1000000, 0}, {"image", 0xffffffff, 0},
    {"balloon", 2, 0}, {"grow_after", 1000000, 0}, {"grow_zero", 4095, 0}, {"drift", 4095, 0},
    {"drift_s", 1000000, 0}, {"drift_after", 1000000, 0}, {"drift_again", 1000000, 0},
};
enum {
    O_COMMON, O_ZERO, O_OWN, O_SEED, O_SLOW, O_REWRITE, O_REWRITE_COMMON, O_GROW, O_REBOOT, O_OFF, O_IMAGE,
    O_BALLOON, O_GROW_AFTER, O_GROW_ZERO, O_DRIFT, O_DRIFT_S, O_DRIFT_AFTER, O_DRIFT_AGAIN, O_ALL
};

/* Length of `prefix` if `text` begins with it, else 0. */
static u32 begins(const char *text, const char *prefix)
{
    u32 n = 0;
    for (; prefix[n]; n++)
        if (text[n] != prefix[n])
            return 0;
    return n;
}
static void parse_options(const char *line)
{
    /* QEMU puts the kernel's path first, which may hold anything: what counts follows the last marker. */
    const char *at = 0;
    for (; *line; line++)
        if (begins(line, "virtksm-guest"))
            at = line + 13;
    if (!at)
        fail("no options: ", "the command line lacks the word virtksm-guest");
    for (;;) {
        while (*at == ' ')
            at++;
        if (!*at)
            return;
        struct option *found = 0;
        u32 length = 0;
        for (u32 i = 0; i < O_ALL && !found; i++)
            if ((length = begins(at, options[i].name)) && at[length] == '=')
                found = &options[i];
        if (!found)
            fail("unknown option: ", at);
        const char *digit = at + length + 1;
        u64 number = 0;
        do {
            if (*digit < '0' || *digit > '9' || (number = number * 10 + (u32)(*digit - '0')) > found->most)
                fail("bad or too large number: ", at);
        } while (*++digit && *digit != ' ');
        found->value = (u32)number;
        at = digit;
    }
}
static u32 value(int option) { return options[option].value; }

/* ---- the two phases ---- */

static void fill(u32 common, u32 zero, u32 own)
{
    u64 start = now_ms();
    for (u32 n = 0; n < common + zero + own; n++) {
        if (value(O_SLOW))
            while (divide((now_ms() - start) * value(O_SLOW) * PAGES_PER_MIB, 1000, 0) <= n)
                doze();
        if (n < common)
            write_page(n, COMMON, value(O_IMAGE), n, 0);
        else if (n < common + zero)
            zero_page(n);
        else
            write_page(n, OWN, value(O_SEED), n - common - zero, 0);
    }
}

/* How many pages have drifted `ms` after settling, by what begins at `second`. */
static u64 drifted_by(u64 ms, u32 second)
{
    u32 pages = value(O_DRIFT) * PAGES_PER_MIB;
    if (!second || ms < second * 1000ull)
        return 0;
    u64 since = ms - second * 1000ull;
    return since >= value(O_DRIFT_S) * 1000ull ? pages : divide(since * pages, value(O_DRIFT_S) * 1000, 0);
}

static void __attribute__((noreturn)) live(u32 common, u32 own_from, u32 own, u32 room)
{
    u32 grown = 0, index;
    u16 balloon = value(O_BALLOON) ? find_balloon() : 0;
    u64 rewritten = 0, again = 0, again_from = 0, drifted = 0;
    if (value(O_REWRITE_COMMON)) /* all guests count rewrites from the same moment: equal content, in step */
        again_from = (u64)wall_second() * value(O_REWRITE_COMMON);
    for (u64 start = now_ms();;) {
        doze();
        u64 ms = now_ms() - start;
        for (u64 due = divide(ms * value(O_REWRITE), 1000, 0); rewritten < due; rewritten++) {
            u32 generation = (u32)divide(rewritten, own, &index) + 1;
            write_page(own_from + index, OWN, value(O_SEED), index, generation);
        }
        for (u64 due = divide(ms * value(O_REWRITE_COMMON), 1000, 0); again < due; again++) {
            u32 generation = (u32)divide(again_from + again, common, &index) + 1;
            write_page(index, COMMON, value(O_IMAGE), index, generation);
        }
        u64 drift = drifted_by(ms, value(O_DRIFT_AFTER)) + drifted_by(ms, value(O_DRIFT_AGAIN));
        for (; drifted < drift; drifted++) {
            u32 generation = (u32)divide(drifted, own, &index) + 1;
            write_page(own_from + index, DRIFTED, 0, index, generation);
        }
        u64 grows_at = value(O_GROW_AFTER) * 1000ull, growing = ms < grows_at ? 0 : ms - grows_at;
        u64 full = divide(growing * value(O_GROW) * PAGES_PER_MIB, 60000, 0);
        for (; grown < full && grown < room; grown++)
            if (grown < value(O_GROW_ZERO) * PAGES_PER_MIB)
                zero_page(own_from + own + grown);
            else
                write_page(own_from + own + grown, OWN, value(O_SEED), own + grown, 0);
        if (balloon && value(O_BALLOON) == 2)
            chatter(balloon, ms);
        else if (balloon)
            answer_balloon(balloon);
        if (value(O_REBOOT) && ms >= value(O_REBOOT) * 1000ull)
            out8(0x64, 0xfe); /* the keyboard controller's reset line */
        if (value(O_OFF) && ms >= value(O_OFF) * 1000ull)
            out16(0x604, 0x2000); /* ACPI power off, where QEMU's firmware puts it */
    }
}

__attribute__((used)) void boot(u32 magic, const u32 *multiboot)
{
    out8(SERIAL + 1, 0), out8(SERIAL + 3, 0x80), out8(SERIAL, 1), out8(SERIAL + 1, 0), out8(SERIAL + 3, 3);
    if (magic != 0x2badb002 || (multiboot[0] & 5) != 5)
        fail("not started by a multiboot loader with memory size and command line", "");
    parse_options((const char *)multiboot[4]);
    u32 common = value(O_COMMON) * PAGES_PER_MIB, zero = value(O_ZERO) * PAGES_PER_MIB;
    u32 own = value(O_OWN) * PAGES_PER_MIB;
    u32 memory_mib = (multiboot[2] >> 10) + 1; /* counted from 1 MiB up; the BIOS keeps the topmost one */
    u32 room = memory_mib > FIRST_MIB ? (memory_mib - FIRST_MIB) * PAGES_PER_MIB : 0;
    if (common + zero + own > room)
        fail("too large: common, zero and own, and 3 MiB more, exceed the guest's memory", "");
    if (((value(O_REWRITE) | value(O_DRIFT)) && !own) || (value(O_REWRITE_COMMON) && !common))
        fail("nothing to rewrite: own= or common= is 0", "");
    calibrate();
    start_timer();
    fill(common, zero, own);
    print("virtksm-guest: settled common="), print_number(value(O_COMMON));
    print(" zero="), print_number(value(O_ZERO));
    print(" own="), print_number(value(O_OWN)), print("\n");
    u32 afterwards = value(O_DRIFT) | value(O_REWRITE) | value(O_REWRITE_COMMON) | value(O_GROW) | value(O_BALLOON);
    if (!(afterwards | value(O_REBOOT) | value(O_OFF)))
        halt();
    live(common, common + zero, own, room - common - zero - own);
}
