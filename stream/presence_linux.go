package stream

import (
	"errors"
	"syscall"
)

func presence(incarnation string) *syscall.SockaddrUnix {
	return &syscall.SockaddrUnix{Name: "@levada-worker/" + incarnation} // the @ makes it abstract
}

// announce holds the socket of that name until the process ends. Nothing is ever read from it.
func announce(incarnation string) bool {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	if err := syscall.Bind(fd, presence(incarnation)); err != nil {
		_ = syscall.Close(fd)
		return false
	}
	return true
}

// answers reports whether a process may hold the socket of that name.
func answers(incarnation string) bool {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return true
	}
	defer func() { _ = syscall.Close(fd) }()
	return !errors.Is(syscall.Connect(fd, presence(incarnation)), syscall.ECONNREFUSED)
}
