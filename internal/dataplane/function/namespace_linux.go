package function

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Numaflow's SDKs have the paths of their sockets built in, and two functions on one machine would share them. So each function is started in a mount
// namespace of its own, where those paths are its own directory. For that this program starts itself first (see Enter), mounts, and becomes the function.
const (
	sdkSockets = "/var/run/numaflow"
	sdkRuntime = "/var/numaflow/runtime"
	enterEnv   = "LEVADA_ENTER_NAMESPACE"
	parentEnv  = "LEVADA_ENTER_PARENT"
)

// canMount finds out once whether this process may make mount namespaces.
var canMount = sync.OnceValue(func() bool {
	if os.Geteuid() != 0 {
		return false
	}
	if os.MkdirAll(sdkSockets, 0o755) != nil || os.MkdirAll(sdkRuntime, 0o755) != nil {
		return false
	}
	for range 3 {
		probe := exec.Command("/proc/self/exe")
		probe.Env = []string{enterEnv + "=probe"}
		probe.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
		err := probe.Run()
		var exit *exec.ExitError
		if err == nil || !errors.As(err, &exit) || exit.Exited() {
			return err == nil
		}
		// It was killed, which says nothing about mounts.
	}
	return false
})

// command prepares a process whose sockets lie in dir. env is told the directory as the process will see it.
func command(dir string, argv []string, env func(socketDir string) []string) *exec.Cmd {
	if !canMount() {
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.Env = env(dir)
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
		return cmd
	}
	cmd := exec.Command("/proc/self/exe", argv...)
	cmd.Env = append(env(sdkSockets), enterEnv+"="+dir, parentEnv+"="+strconv.Itoa(os.Getpid()))
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL, Setpgid: true}
	return cmd
}

// Enter must be the first thing that a main function (or TestMain) of a program that runs functions does. In a process that was started to
// become a function it does not return; in any other it does nothing.
func Enter() {
	dir, ok := os.LookupEnv(enterEnv)
	if !ok {
		return
	}
	if dir == "probe" {
		err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		if err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	err := enter(dir)
	fmt.Fprintf(os.Stderr, "levada: start the function %v: %v\n", os.Args[1:], err)
	os.Exit(126)
}

func enter(dir string) error {
	if err := os.Unsetenv(enterEnv); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	runtimeDir := dir + "/runtime"
	if err := os.MkdirAll(runtimeDir, 0o777); err != nil {
		return err
	}
	for target, source := range map[string]string{sdkSockets: dir, sdkRuntime: runtimeDir} {
		if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount %s: %w", target, err)
		}
	}
	parent := os.Getenv(parentEnv)
	if err := os.Unsetenv(parentEnv); err != nil {
		return err
	}
	// The signal at the parent's death is a property of a thread, and what is executed has that of the thread which calls exec: by now this may be
	// another than the one that was started with it.
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("ask for the signal at the parent's death: %w", err)
	}
	if strconv.Itoa(os.Getppid()) != parent {
		return errors.New("its parent is gone")
	}
	return unix.Exec(os.Args[1], os.Args[1:], os.Environ())
}

// unprivilegedHint explains what a function needs that listens at the SDKs' fixed path.
func unprivilegedHint() string {
	if canMount() {
		return ""
	}
	return " in its LEVADA_SOCKET_DIR (functions of Numaflow's SDKs listen in " + sdkSockets + " unless told otherwise: run levada as root, so that each gets its own, or use an SDK option for the socket)"
}
