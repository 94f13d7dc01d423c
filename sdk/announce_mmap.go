//go:build linux || darwin || freebsd || netbsd || openbsd || dragonfly

package sdk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync/atomic"
	"syscall"
	"unsafe"
)

// mapAnnounceFile returns nil slots if the file does not exist: the platform then does not want to know.
func mapAnnounceFile(name string) (*[announceSlots]atomic.Uint64, func() error, error) {
	file, err := os.OpenFile(name, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("sdk: announce file: %w", err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, nil, fmt.Errorf("sdk: announce file: %w", err)
	}
	// A store behind the end of a mapped file is SIGBUS, so a short file must be refused here.
	if info.Size() < announceFileSize {
		return nil, nil, fmt.Errorf("sdk: announce file %s has %d bytes, must have %d", name, info.Size(), announceFileSize)
	}
	memory, err := syscall.Mmap(int(file.Fd()), 0, announceFileSize, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		return nil, nil, fmt.Errorf("sdk: map announce file %s: %w", name, err)
	}
	// Mappings are aligned to pages, so the slots are aligned for atomic access.
	return (*[announceSlots]atomic.Uint64)(unsafe.Pointer(unsafe.SliceData(memory))), func() error { return syscall.Munmap(memory) }, nil
}
