package process

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Numaflow's SDKs have the paths of their sockets built in, and two functions on one machine would share them. So each function is started in a mount
// namespace of its own, where those paths are its own directory, and where its volumes are at their mount paths. For that this program starts itself first
// (see Enter), mounts, and becomes the function. Root needs nothing more; other users do it in a user namespace, where they are allowed to.
const (
	sdkSockets = "/var/run/numaflow"
	sdkRuntime = "/var/numaflow/runtime"
	enterEnv   = "LEVADA_ENTER_NAMESPACE"
)

// entry is what a process that becomes a function has to do before; it is passed as JSON in enterEnv.
type entry struct {
	Dir    string  `json:"dir"`
	Parent int     `json:"parent"`
	Mounts []Mount `json:"mounts,omitempty"`
	User   *User   `json:"user,omitempty"`
	Probe  bool    `json:"probe,omitempty"`
}

// mounting is how this process can make mount namespaces.
type mounting int

const (
	mountsNothing   mounting = iota
	mountsAsRoot             // CLONE_NEWNS
	mountsInUserNS           // CLONE_NEWUSER and CLONE_NEWNS
	capSysChroot    = 18
	capSysAdmin     = 21
	capDACOverride  = 1
	mountPointFlags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NOATIME | unix.MS_NODIRATIME | unix.MS_RELATIME
)

// howToMount finds out once how this process may make mount namespaces, by doing it.
var howToMount = sync.OnceValue(func() mounting {
	ways := []mounting{mountsInUserNS}
	if os.Geteuid() == 0 {
		ways = []mounting{mountsAsRoot, mountsInUserNS}
	}
	for _, way := range ways {
		if probeMounting(way) {
			return way
		}
	}
	return mountsNothing
})

func probeMounting(way mounting) bool {
	if way == mountsAsRoot && (os.MkdirAll(sdkSockets, 0o755) != nil || os.MkdirAll(sdkRuntime, 0o755) != nil) {
		return false
	}
	dir, err := os.MkdirTemp("", "levada-probe-")
	if err != nil {
		return false
	}
	defer os.RemoveAll(dir)
	for range 3 {
		probe := exec.Command("/proc/self/exe")
		probe.Env = []string{enterEnv + "=" + entry{Dir: dir, Probe: true}.String()}
		probe.SysProcAttr = way.attributes()
		err := probe.Run()
		var exit *exec.ExitError
		if err == nil || !errors.As(err, &exit) || exit.Exited() {
			return err == nil
		}
		// It was killed, which says nothing about mounts.
	}
	return false
}

func (e entry) String() string {
	b, err := json.Marshal(e)
	if err != nil {
		panic(err) // strings and numbers only
	}
	return string(b)
}

func (m mounting) attributes() *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	switch m {
	case mountsAsRoot:
		a.Cloneflags = unix.CLONE_NEWNS
	case mountsInUserNS:
		// The function keeps its user and group; what it needs for the mounts are capabilities that end with exec.
		uid, gid := os.Geteuid(), os.Getegid()
		a.Cloneflags = unix.CLONE_NEWUSER | unix.CLONE_NEWNS
		a.UidMappings = []syscall.SysProcIDMap{{ContainerID: uid, HostID: uid, Size: 1}}
		a.GidMappings = []syscall.SysProcIDMap{{ContainerID: gid, HostID: gid, Size: 1}}
		a.AmbientCaps = []uintptr{capSysAdmin, capSysChroot, capDACOverride}
	}
	return a
}

// CanMount reports whether functions can have volumes, and /var/run/numaflow each for itself.
func CanMount() bool { return howToMount() != mountsNothing }

// command prepares a process whose sockets lie in dir. env is called with the directory as the process will see it.
func command(cfg *Config, dir string, argv []string, env func(socketDir string) []string) (*exec.Cmd, error) {
	way := howToMount()
	if way == mountsInUserNS && cfg.User != nil {
		way = mountsNothing // only one user exists in it
	}
	if way == mountsNothing {
		if len(cfg.Mounts) > 0 {
			return nil, fmt.Errorf("%w: it has volume mounts, and this process may not make mount namespaces%s", ErrStart, privilegeHint())
		}
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.Env = env(dir)
		cmd.SysProcAttr = mountsNothing.attributes()
		cmd.SysProcAttr.Credential = cfg.User.credential()
		return cmd, nil
	}
	cmd := exec.Command("/proc/self/exe", argv...)
	cmd.Env = append(env(sdkSockets), enterEnv+"="+entry{Dir: dir, Parent: os.Getpid(), Mounts: cfg.Mounts, User: cfg.User}.String())
	cmd.SysProcAttr = way.attributes()
	return cmd, nil
}

// Enter must be the first thing that a main function (or TestMain) of a program that runs functions does. In a process that was started to
// become a function it does not return; in any other it does nothing.
func Enter() {
	text, ok := os.LookupEnv(enterEnv)
	if !ok {
		return
	}
	var e entry
	err := json.Unmarshal([]byte(text), &e)
	if err == nil {
		err = e.enter()
	}
	if err == nil {
		os.Exit(0) // the probe
	}
	message := fmt.Sprintf("start %q: %v", os.Args[1:], err)
	if e.Dir != "" && !e.Probe {
		_ = os.WriteFile(filepath.Join(e.Dir, enterErrorFile), []byte(message), 0o600)
	}
	fmt.Fprintln(os.Stderr, "levada:", message)
	os.Exit(126)
}

func (e *entry) enter() error {
	// Capabilities and the signal at the parent's death are properties of a thread, and what is executed has those of the thread that calls exec.
	runtime.LockOSThread()
	if err := os.Unsetenv(enterEnv); err != nil {
		return err
	}
	wd, wdErr := os.Getwd()
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	runtimeDir := e.Dir + "/runtime"
	if err := os.MkdirAll(runtimeDir, 0o777); err != nil {
		return err
	}
	if e.User != nil {
		if err := os.Chown(runtimeDir, e.User.UID, e.User.GID); err != nil {
			return err
		}
	}
	m := mounter{staging: filepath.Join(e.Dir, "staging")}
	for _, v := range e.Mounts {
		if err := m.bind(v); err != nil {
			return err
		}
	}
	for _, v := range []Mount{{Source: e.Dir, Target: sdkSockets}, {Source: runtimeDir, Target: sdkRuntime}} {
		if err := m.bind(v); err != nil {
			return err
		}
	}
	if e.Probe {
		return nil
	}
	if wdErr == nil {
		if err := os.Chdir(wd); err != nil { // below what was mounted over, the old one is another
			return fmt.Errorf("working directory: %w", err)
		}
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	if err := e.User.become(); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("ask for the signal at the parent's death: %w", err)
	}
	if os.Getppid() != e.Parent {
		return errors.New("its parent is gone")
	}
	return unix.Exec(os.Args[1], os.Args[1:], os.Environ())
}

// become changes to the user for good.
func (u *User) become() error {
	if u == nil {
		return nil
	}
	if err := syscall.Setgroups(u.Groups); err != nil {
		return fmt.Errorf("set the groups %v: %w", u.Groups, err)
	}
	if err := syscall.Setgid(u.GID); err != nil {
		return fmt.Errorf("become the group %d: %w", u.GID, err)
	}
	if err := syscall.Setuid(u.UID); err != nil {
		return fmt.Errorf("become the user %d: %w", u.UID, err)
	}
	return nil
}

// mounter makes mounts in a namespace of its own, also where a mount point does not exist: nothing is made on the machine.
type mounter struct {
	staging  string
	n        int
	shadowed []string // directories that are copies in this namespace, where mount points can be made
}

func (m *mounter) bind(v Mount) error {
	info, err := os.Stat(v.Source)
	if err != nil {
		return fmt.Errorf("mount %s: %w", v.Target, err)
	}
	if err := m.point(v.Target, !info.IsDir()); err != nil {
		return fmt.Errorf("make the mount point %s: %w", v.Target, err)
	}
	if err := unix.Mount(v.Source, v.Target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("mount %s: %w", v.Target, err)
	}
	if !v.ReadOnly {
		return nil
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(v.Target, &fs); err != nil {
		return fmt.Errorf("mount %s: %w", v.Target, err)
	}
	// Flags of the file system below are locked in a user namespace and have to be repeated.
	if err := unix.Mount("", v.Target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|uintptr(fs.Flags)&mountPointFlags, ""); err != nil {
		return fmt.Errorf("mount %s read-only: %w", v.Target, err)
	}
	return nil
}

// point makes sure that there is something to mount on.
func (m *mounter) point(target string, file bool) error {
	if info, err := os.Stat(target); err == nil {
		if info.IsDir() == file {
			return errors.New("a file and a directory cannot be mounted on each other")
		}
		return nil
	}
	parent := filepath.Dir(target)
	for !isDirectory(parent) {
		if parent == "/" {
			return errors.New("no directory above it can be read")
		}
		parent = filepath.Dir(parent)
	}
	rest, err := filepath.Rel(parent, target)
	if err != nil {
		return err
	}
	if parent, err = filepath.EvalSymlinks(parent); err != nil {
		return err
	}
	if err := m.shadow(parent); err != nil {
		return err
	}
	full := filepath.Join(parent, rest)
	if !file {
		return os.MkdirAll(full, 0o755)
	}
	if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
		return err
	}
	return os.WriteFile(full, nil, 0o644)
}

func isDirectory(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// shadow puts a directory in memory in the place of dir, with everything that dir has.
func (m *mounter) shadow(dir string) error {
	for _, s := range m.shadowed {
		if rest, ok := strings.CutPrefix(dir, s); ok && (rest == "" || s != "/" && rest[0] == '/') && sameDevice(dir, s) {
			return nil
		}
	}
	m.n++
	copied := filepath.Join(m.staging, strconv.Itoa(m.n))
	if err := os.MkdirAll(copied, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", copied, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return fmt.Errorf("mount a directory in memory: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := mirror(filepath.Join(dir, e.Name()), filepath.Join(copied, e.Name()), e.Type()); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%s: %w", filepath.Join(dir, e.Name()), err)
		}
	}
	m.shadowed = append(m.shadowed, dir)
	if dir != "/" {
		return unix.Mount(copied, dir, "", unix.MS_MOVE, "")
	}
	if err := unix.Chroot(copied); err != nil {
		return fmt.Errorf("change the root directory: %w", err)
	}
	return os.Chdir("/")
}

func sameDevice(a, b string) bool {
	var x, y unix.Stat_t
	return unix.Stat(a, &x) == nil && unix.Stat(b, &y) == nil && x.Dev == y.Dev
}

// mirror shows the file or directory from at the path to.
func mirror(from, to string, kind os.FileMode) error {
	switch {
	case kind&os.ModeSymlink != 0:
		target, err := os.Readlink(from)
		if err != nil {
			return err
		}
		return os.Symlink(target, to)
	case kind.IsDir():
		if err := os.Mkdir(to, 0o755); err != nil {
			return err
		}
	default:
		if err := os.WriteFile(to, nil, 0o600); err != nil {
			return err
		}
	}
	return unix.Mount(from, to, "", unix.MS_BIND|unix.MS_REC, "")
}

// whereToListen says where a function is expected, where that is not where the SDKs listen by themselves.
func whereToListen() string {
	if CanMount() {
		return ""
	}
	return " in its LEVADA_SOCKET_DIR" + privilegeHint()
}

// privilegeHint says what a function needs that listens at the SDKs' fixed path, or has volumes.
func privilegeHint() string {
	if CanMount() {
		return ""
	}
	return ". Functions of Numaflow's SDKs listen in " + sdkSockets + ", and volumes need a mount namespace: run levada as root, or allow user namespaces" +
		" (sysctl kernel.unprivileged_userns_clone=1, user.max_user_namespaces above 0, kernel.apparmor_restrict_unprivileged_userns=0; in a container, a seccomp profile that allows unshare and mount)"
}
