//go:build linux

package faults

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// How often the power fails in a run; POWERLOSS_CUTS=20 for a long one.
var powerCuts = fromEnv("POWERLOSS_CUTS", 5)

// disk is a file system of its own, whose power can be cut: what was not written through to it is gone then, as with a machine that loses its power.
type disk struct {
	image, dir string
}

// cannot skips a test that this machine cannot run. In CI that is a failure: nobody would notice that it never ran.
func cannot(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("this test must run in CI, and cannot: "+format, args...)
	}
	t.Skipf(format, args...)
}

func newDisk(t *testing.T, megabytes int) *disk {
	t.Helper()
	if os.Geteuid() != 0 {
		cannot(t, "cutting the power of a disk needs root: run `sudo -E go test ./test/faults -run TestPowerLoss`")
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		cannot(t, "cutting the power of a disk needs loop devices: %v", err)
	}
	ownMounts(t)
	d := &disk{image: filepath.Join(t.TempDir(), "disk"), dir: filepath.Join(t.TempDir(), "mnt")}
	if err := errors.Join(os.WriteFile(d.image, nil, 0o600), os.Truncate(d.image, int64(megabytes)<<20), os.Mkdir(d.dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", d.image).CombinedOutput(); err != nil {
		cannot(t, "mkfs.ext4: %v: %s", err, out)
	}
	if err := d.mount(); err != nil {
		cannot(t, "%v", err)
	}
	t.Cleanup(func() { _ = exec.Command("umount", "-l", d.dir).Run() })
	return d
}

// ownMounts gives the test a mount namespace of its own. Functions get copies of the namespace they are started in, also those of other tests on this machine,
// and a copy keeps a file system alive. The thread ends with the test.
func ownMounts(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		cannot(t, "a mount namespace: %v", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		cannot(t, "a mount namespace: %v", err)
	}
}

func (d *disk) mount() error {
	if out, err := exec.Command("mount", "-o", "loop", d.image, d.dir).CombinedOutput(); err != nil {
		return fmt.Errorf("mount: %w: %s", err, out)
	}
	return nil
}

const (
	ext4Shutdown   = 0x8004587d // EXT4_IOC_SHUTDOWN
	shutdownNoSync = 2          // EXT4_GOING_FLAGS_NOLOGFLUSH: not even the file system's own log is written
)

// cut stops all writing at once.
func (d *disk) cut() error {
	f, err := os.Open(d.dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.IoctlSetPointerInt(int(f.Fd()), ext4Shutdown, shutdownNoSync)
}

// powerOn brings the disk back with what had reached it. Who used it must be dead; the kernel may still be busy with that.
func (d *disk) powerOn() error {
	mounted := true
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if mounted {
			mounted = exec.Command("umount", d.dir).Run() != nil
			continue
		}
		// Functions live in mount namespaces of their own: until the last is gone the loop device, and with it the old state, lives on.
		if devices, err := exec.Command("losetup", "-j", d.image).Output(); err == nil && len(devices) == 0 {
			return d.mount()
		}
	}
	return fmt.Errorf("%s is still in use", d.dir)
}

// TestPowerLossInjector shows that a cut takes away what was not written through, and nothing else: without that the tests below would prove nothing.
func TestPowerLossInjector(t *testing.T) {
	d := newDisk(t, 32)
	write := func(name string, sync bool) {
		f, err := os.Create(filepath.Join(d.dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteString(strings.Repeat("water ", 10_000)); err != nil {
			t.Fatal(err)
		}
		if sync {
			if err := f.Sync(); err != nil {
				t.Fatal(err)
			}
		}
	}
	write("synced", true)
	write("unsynced", false)
	if err := errors.Join(d.cut(), d.powerOn()); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(d.dir, "synced")); err != nil || len(b) != 60_000 {
		t.Errorf("what was synced has %d bytes: %v", len(b), err)
	}
	if b, err := os.ReadFile(filepath.Join(d.dir, "unsynced")); err == nil && len(b) > 0 {
		t.Errorf("%d bytes that were never synced survived: the cut cuts nothing", len(b))
	}
}

// TestPowerLoss cuts the power under a pipeline again and again: the broker's store, the position of the source and the sink's file are on the
// disk that loses it. With default settings nothing may be lost and nothing doubled.
func TestPowerLoss(t *testing.T) {
	for _, c := range []struct {
		name              string
		batch, partitions int
	}{
		{"1 partition", 100, 1},
		{"3 partitions", 37, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, logged, err := runPowerLoss(t, c.batch, c.partitions)
			if err != nil {
				t.Fatalf("levada ended with %v:\n%s", err, last(logged, 4000))
			}
			l.check(t, plain, nothing)
		})
	}
}

// TestPowerLossWithoutSync is the same where the broker syncs every two minutes only: it shows what the default is worth, and that TestPowerLoss would see a loss.
func TestPowerLossWithoutSync(t *testing.T) {
	l, logged, err := runPowerLoss(t, 100, 1, "--sync-interval", "2m")
	if err != nil {
		t.Logf("the loss was reported: levada ended with %v: %s", err, last(logged, 600))
		return
	}
	lost, doubled := l.count(t)
	if lost+doubled == 0 {
		t.Error("the power failed while the broker did not sync, and nothing was lost: TestPowerLoss would not see a loss either")
	}
	t.Logf("without a sync before each acknowledgement %d of %d lines were lost and %d doubled", lost, l.lines, doubled)
}

// runPowerLoss runs a pipeline to its end, with power cuts. The error is that of a levada that ended by itself.
func runPowerLoss(t *testing.T, batch, partitions int, flags ...string) (ledger, []byte, error) {
	t.Helper()
	d := newDisk(t, 1024)
	dir := t.TempDir()
	random := rand.New(rand.NewPCG(seed, 2))
	t.Logf("LEDGER_SEED=%d", seed)
	const perSecond = 4000
	l := newLedger(t, dir, (powerCuts+1)*perSecond*2, plain)
	l.out = filepath.Join(d.dir, "out.txt")
	text := strings.Replace(fmt.Sprintf(manifest, batch, partitions, program(t, "cat"), perSecond), "path: out.txt", "path: "+l.out, 1)
	file := filepath.Join(dir, "pipeline.yaml")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "log.txt"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	data := filepath.Join(d.dir, "data")
	args := append([]string{"run", file, "--data", data, "--quiet", "--log-format", "text"}, flags...)
	for cuts := 0; ; cuts++ {
		cmd := exec.CommandContext(ctx, program(t, "levada"), args...)
		cmd.Stdout, cmd.Stderr = log, log
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		var cut <-chan time.Time
		if cuts < powerCuts {
			cut = time.After(time.Duration(20+random.IntN(200+1400*(cuts%2))) * time.Millisecond) // every other one during the start
		}
		select {
		case err := <-ended:
			if err == nil && cuts < powerCuts {
				t.Errorf("the run was too short: it ended after %d of %d cuts", cuts, powerCuts)
			}
			logged, _ := os.ReadFile(log.Name())
			return l, logged, err
		case <-cut:
		}
		if err := d.cut(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Process.Kill() // it may have ended by itself: nothing can be written any more
		<-ended
		if err := d.powerOn(); err != nil {
			t.Fatal(err)
		}
	}
}
