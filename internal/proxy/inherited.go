package proxy

import (
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// inherited are the sockets that systemd (socket activation), or who does as it does, has opened for this process: LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES.
// They stay open as long as the process runs, so that a listener can be opened again after a drain.
var inherited = sync.OnceValues(func() (map[string]*os.File, error) {
	defer func() {
		for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
			_ = os.Unsetenv(name) // they are not for processes that this one starts
		}
	}()
	return inheritedFrom(os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS"), os.Getenv("LISTEN_FDNAMES"))
})

const firstInherited = 3 // descriptor

func inheritedFrom(pid, count, names string) (map[string]*os.File, error) {
	if pid != strconv.Itoa(os.Getpid()) {
		return nil, nil // they are not for us
	}
	n, err := strconv.Atoi(count)
	if err != nil || n < 0 || n > 1024 {
		return nil, fmt.Errorf("LISTEN_FDS is %q, expected the number of sockets", count)
	}
	all := map[string]*os.File{}
	given := strings.Split(names, ":")
	for i := range n {
		name := strconv.Itoa(i)
		if i < len(given) && given[i] != "" {
			name = given[i]
		}
		if all[name] != nil {
			return nil, fmt.Errorf("LISTEN_FDNAMES has %q twice: give each socket its own FileDescriptorName=", name)
		}
		all[name] = os.NewFile(uintptr(firstInherited+i), "systemd:"+name)
	}
	return all, nil
}

// listenInherited is the socket with this name. Closing it leaves the one of systemd, at which clients wait then.
func listenInherited(name string) (net.Listener, error) {
	all, err := inherited()
	if err != nil {
		return nil, err
	}
	f := all[name]
	if f == nil {
		known := make([]string, 0, len(all))
		for name := range all {
			known = append(known, name)
		}
		slices.Sort(known)
		if len(known) == 0 {
			return nil, fmt.Errorf("listen systemd:%s: no sockets were passed to this process (LISTEN_PID, LISTEN_FDS): start it by a .socket unit, or use host:port", name)
		}
		return nil, fmt.Errorf("listen systemd:%s: no socket has this name; there are %s (FileDescriptorName= of the .socket unit)", name, strings.Join(known, ", "))
	}
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("listen systemd:%s: %w", name, err)
	}
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
	}
	return l, nil
}
