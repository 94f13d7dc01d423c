package sdk

import (
	"context"
	"encoding/binary"
	"math/bits"
	"strconv"
	"sync/atomic"
)

// The announce file tells the platform which messages were in user code when the process died, however it died:
// it is memory that both share, so what was stored stays when the process is killed, and a store is not a system call.
const (
	announceSlots    = 1024
	announceFileSize = announceSlots * 8
	// announceUnary marks a message of the Numaflow contract, whose id is a number of the platform's.
	announceUnary = 1 << 63
	// announceIndexBits are the low bits that hold a message's place in its block, counted from 1.
	announceIndexBits = 20
	maxBlockMessages  = 1<<announceIndexBits - 1
	maxBlockID        = 1<<(63-announceIndexBits) - 1
)

// A seat is the right to run user code, and the slot where it is announced. No two goroutines hold the same one.
type seat struct{ slot *atomic.Uint64 }

// block announces a message by its place in its block.
func (s seat) block(id uint64, index int) { s.store(id<<announceIndexBits | uint64(index+1)) }

// unary announces a message by its id if that is a number, as Levada's are. Numaflow's are not, and its platform does not look.
func (s seat) unary(id string) {
	if n, ok := parseAnnounced(id); ok {
		s.store(announceUnary | (n + 1))
	}
}

// clear says that user code has returned.
func (s seat) clear() { s.slot.Store(0) }

func (s seat) store(v uint64) {
	if bigEndian {
		v = bits.ReverseBytes64(v)
	}
	s.slot.Store(v)
}

var bigEndian = binary.NativeEndian.Uint16([]byte{0, 1}) == 1

// parseAnnounced leaves out the greatest id, whose successor would not fit beside the mark.
func parseAnnounced(id string) (uint64, bool) {
	if len(id) == 0 || len(id) > 19 || id[0] < '0' || id[0] > '9' {
		return 0, false
	}
	n, err := strconv.ParseUint(id, 10, 64)
	return n, err == nil && n < announceUnary-1
}

// seats hands out the seats of a process.
type seats struct {
	free  chan seat
	close func() error
}

func newSeats(n int, announceFile string) (*seats, error) {
	slots, unmap, err := announceSlotsOf(announceFile)
	if err != nil {
		return nil, err
	}
	s := &seats{free: make(chan seat, n), close: unmap}
	for i := range n {
		// Neighbours in the order of use lie on different cache lines, 8 slots apart.
		s.free <- seat{&slots[i%128*8+i/128]}
	}
	return s, nil
}

// take waits for a seat.
func (s *seats) take(ctx context.Context) (seat, error) {
	select {
	case seat := <-s.free:
		return seat, nil
	case <-ctx.Done():
		return seat{}, ctx.Err()
	}
}

// try takes a seat if one is free.
func (s *seats) try() (seat, bool) {
	select {
	case seat := <-s.free:
		return seat, true
	default:
		return seat{}, false
	}
}

func (s *seats) leave(seat seat) { s.free <- seat }

// announceSlotsOf returns the slots in the announce file, or private ones if there is no such file.
func announceSlotsOf(file string) (*[announceSlots]atomic.Uint64, func() error, error) {
	if file != "" {
		slots, unmap, err := mapAnnounceFile(file)
		if slots != nil || err != nil {
			return slots, unmap, err
		}
	}
	return new([announceSlots]atomic.Uint64), func() error { return nil }, nil
}
