// SPDX-License-Identifier: GPL-2.0-only
/*
 * The serial console: standard output, and standard input as far as there is
 * any. A terminal is left in the mode that it is in.
 */
#include <err.h>
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <linux/serial_reg.h>

#include "vmm.h"

#define SERIAL_IRQ	4

static void serial_set_irq(struct vm *vm)
{
	struct serial *s = &vm->serial;
	bool level = (s->ier & UART_IER_RDI && s->rx_len) ||
		     (s->ier & UART_IER_THRI && s->thre);
	struct kvm_irq_level irq = { .irq = SERIAL_IRQ, .level = level };

	if (level == s->irq)
		return;
	s->irq = level;
	if (ioctl(vm->fd, KVM_IRQ_LINE, &irq))
		err(EXIT_VMM, "KVM_IRQ_LINE");
}

static __u8 serial_read_rx(struct serial *s)
{
	__u8 byte;

	if (!s->rx_len)
		return 0;
	byte = s->rx[s->rx_next++];
	if (s->rx_next == s->rx_len) {
		s->rx_len = 0;
		s->rx_next = 0;
		pthread_cond_signal(&s->room);
	}
	return byte;
}

static __u8 serial_read_iir(struct serial *s)
{
	__u8 fifo = s->fcr & UART_FCR_ENABLE_FIFO ? 0xc0 : 0;

	if (s->ier & UART_IER_RDI && s->rx_len)
		return fifo | UART_IIR_RDI;
	if (s->ier & UART_IER_THRI && s->thre) {
		s->thre = false;
		return fifo | UART_IIR_THRI;
	}
	return fifo | UART_IIR_NO_INT;
}

static __u8 serial_read(struct serial *s, unsigned int reg)
{
	bool dlab = s->lcr & UART_LCR_DLAB;

	switch (reg) {
	case UART_RX:
		return dlab ? s->dll : serial_read_rx(s);
	case UART_IER:
		return dlab ? s->dlm : s->ier;
	case UART_IIR:
		return serial_read_iir(s);
	case UART_LCR:
		return s->lcr;
	case UART_MCR:
		return s->mcr;
	case UART_LSR:
		return UART_LSR_TEMT | UART_LSR_THRE |
		       (s->rx_len ? UART_LSR_DR : 0);
	case UART_MSR:
		/* Drivers probe for a UART by its loop from MCR to MSR. */
		if (s->mcr & UART_MCR_LOOP)
			return (s->mcr & UART_MCR_RTS ? UART_MSR_CTS : 0) |
			       (s->mcr & UART_MCR_DTR ? UART_MSR_DSR : 0) |
			       (s->mcr & UART_MCR_OUT1 ? UART_MSR_RI : 0) |
			       (s->mcr & UART_MCR_OUT2 ? UART_MSR_DCD : 0);
		return UART_MSR_CTS | UART_MSR_DSR | UART_MSR_DCD;
	default:
		return s->scr;
	}
}

static void serial_transmit(struct vm *vm, __u8 byte)
{
	struct serial *s = &vm->serial;

	/* The line goes down and up again: the chip sees edges. */
	s->thre = false;
	serial_set_irq(vm);
	if (!(s->mcr & UART_MCR_LOOP) && write(STDOUT_FILENO, &byte, 1) < 0)
		err(EXIT_VMM, "console");
	s->thre = true;
}

static void serial_write(struct vm *vm, unsigned int reg, __u8 value)
{
	struct serial *s = &vm->serial;
	bool dlab = s->lcr & UART_LCR_DLAB;

	switch (reg) {
	case UART_TX:
		if (dlab)
			s->dll = value;
		else
			serial_transmit(vm, value);
		break;
	case UART_IER:
		if (dlab) {
			s->dlm = value;
			break;
		}
		if (value & ~s->ier & UART_IER_THRI)
			s->thre = true;
		s->ier = value & 0xf;
		break;
	case UART_FCR:
		s->fcr = value;
		break;
	case UART_LCR:
		s->lcr = value;
		break;
	case UART_MCR:
		s->mcr = value & 0x1f;
		break;
	case UART_SCR:
		s->scr = value;
		break;
	}
}

void serial_access(struct vm *vm, bool is_write, unsigned int reg, __u8 *value)
{
	pthread_mutex_lock(&vm->serial.lock);
	if (is_write)
		serial_write(vm, reg, *value);
	else
		*value = serial_read(&vm->serial, reg);
	serial_set_irq(vm);
	pthread_mutex_unlock(&vm->serial.lock);
}

static void *serial_input(void *arg)
{
	struct vm *vm = arg;
	struct serial *s = &vm->serial;
	__u8 buf[sizeof(s->rx)];
	ssize_t n;

	while ((n = read(STDIN_FILENO, buf, sizeof(buf))) > 0) {
		pthread_mutex_lock(&s->lock);
		while (s->rx_len)
			pthread_cond_wait(&s->room, &s->lock);
		memcpy(s->rx, buf, n);
		s->rx_len = n;
		serial_set_irq(vm);
		pthread_mutex_unlock(&s->lock);
	}
	return NULL;
}

void start_serial(struct vm *vm)
{
	pthread_t thread;

	pthread_mutex_init(&vm->serial.lock, NULL);
	pthread_cond_init(&vm->serial.room, NULL);
	errno = pthread_create(&thread, NULL, serial_input, vm);
	if (errno)
		err(EXIT_VMM, "thread");
}

