package client

import (
	"context"
	"encoding/binary"
	"os"
)

// A function of our SDK announces each message before it gives it to user code, in memory that it shares with us through a file: what was in
// user code when it was killed is there to read. See sdk/announce.go, the other side of this.
const (
	announceSlots     = 1024
	announceUnary     = 1 << 63
	announceIndexBits = 20
	// AnnounceFile is the name of the file in the socket directory.
	AnnounceFile = "announce"
)

// Announcements waits until the process is gone, whose call ended with err, and returns what it had announced; nil if it announces nothing.
type Announcements func(ctx context.Context, err error) map[uint64]bool

// CreateAnnounceFile makes an empty one.
func CreateAnnounceFile(path string) error {
	return os.WriteFile(path, make([]byte, announceSlots*8), 0o600)
}

// ReadAnnounceFile returns what is announced; nil if nothing is, as with an SDK that does not know of the file.
func ReadAnnounceFile(path string) map[uint64]bool {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	var set map[uint64]bool
	for ; len(b) >= 8; b = b[8:] {
		if v := binary.LittleEndian.Uint64(b); v != 0 {
			if set == nil {
				set = map[uint64]bool{}
			}
			set[v] = true
		}
	}
	return set
}
