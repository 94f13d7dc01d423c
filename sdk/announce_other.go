//go:build !(linux || darwin || freebsd || netbsd || openbsd || dragonfly)

package sdk

import "sync/atomic"

// mapAnnounceFile announces nothing where there is no mmap.
func mapAnnounceFile(string) (*[announceSlots]atomic.Uint64, func() error, error) {
	return nil, nil, nil
}
