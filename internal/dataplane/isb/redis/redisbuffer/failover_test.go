//go:build unix

package redisbuffer_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/testredis"
)

// pass writes and reads blocks from one position to another.
func pass(ctx context.Context, t *testing.T, p *buffer.Partition, lo, hi uint64) {
	t.Helper()
	var writing sync.WaitGroup
	writing.Go(func() {
		for pos := lo; pos <= hi; pos++ {
			if err := writeBlock(ctx, p.Writer, "a/0", pos, 100); err != nil {
				t.Errorf("write %d: %v", pos, err)
				return
			}
		}
	})
	for pos := lo; pos <= hi; pos++ {
		d, err := p.Read(ctx)
		if err != nil {
			t.Fatalf("read %d: %v", pos, err)
		}
		if d.Block.Lo != pos {
			t.Fatalf("block %d came, want %d", d.Block.Lo, pos)
		}
		p.Done(ctx, d)
	}
	writing.Wait()
}

// When the master is gone, Sentinels make its replica the master. Writer and reader go on there; what the replica had is all there. (What it had not is lost, as
// replication is asynchronous; that shows as a lost end.)
func TestPartitionGoesOnAfterASentinelFailover(t *testing.T) {
	s := testredis.NewSentinel(t)
	p := partition(t, dial(t, s.URL()), buffer.Options{SaveEvery: 10 * time.Millisecond})
	ctx := bounded(t)
	runPartition(ctx, t, p)
	pass(ctx, t, p, 1, 100)
	s.WaitSynced()
	s.Servers[0].Kill()
	pass(ctx, t, p, 101, 200)
	if p.Pending() != 0 || p.Health() != nil {
		t.Errorf("%d pending, %v", p.Pending(), p.Health())
	}
}

// The same in a cluster, whose servers elect the replica themselves.
func TestPartitionGoesOnAfterAClusterFailover(t *testing.T) {
	c := testredis.NewCluster(t, 3, true)
	p := partition(t, dial(t, c.URL()), buffer.Options{SaveEvery: 10 * time.Millisecond})
	ctx := bounded(t)
	runPartition(ctx, t, p)
	pass(ctx, t, p, 1, 100)
	owner := c.Owner(keyPrefix + "log")
	// The replica has all before its master is killed.
	until(ctx, t, "the replica has all", func() error {
		master, err := c.Client(owner).Info(ctx, "replication").Result()
		if err != nil {
			return err
		}
		offset := infoField(master, "master_repl_offset")
		if replica := infoField(master, "slave0"); !strings.Contains(replica, "offset="+offset) {
			return errors.New(replica)
		}
		return nil
	})
	c.Masters[owner].Kill()
	pass(ctx, t, p, 101, 200)
}

func infoField(info, name string) string {
	_, rest, _ := strings.Cut(info, name+":")
	line, _, _ := strings.Cut(rest, "\r\n")
	return line
}

func until(ctx context.Context, t *testing.T, what string, do func() error) {
	t.Helper()
	for {
		err := do()
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("never: %s: %v", what, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// A slot that moves to another server takes the partition with it, key by key: scripts are refused (TRYAGAIN) while its keys are at two servers, and requests
// are sent on (ASK, then MOVED).
func TestPartitionGoesOnWhileItsSlotMoves(t *testing.T) {
	c := testredis.NewCluster(t, 3, false)
	p := partition(t, dial(t, c.URL()), buffer.Options{SaveEvery: 10 * time.Millisecond})
	ctx := bounded(t)
	runPartition(ctx, t, p)
	pass(ctx, t, p, 1, 50)
	moved := make(chan error, 1)
	go func() { moved <- moveSlot(ctx, c, keyPrefix+"log") }()
	pass(ctx, t, p, 51, 1000)
	if err := <-moved; err != nil {
		t.Fatal(err)
	}
	pass(ctx, t, p, 1001, 1050)
}

// moveSlot gives the slot of a key to the next master.
func moveSlot(ctx context.Context, c *testredis.Cluster, key string) error {
	from := c.Owner(key)
	to := (from + 1) % 3
	source, target := c.Client(from), c.Client(to)
	slot, err := source.ClusterKeySlot(ctx, key).Result()
	if err != nil {
		return err
	}
	ids := [2]string{}
	for i, client := range []*redis.Client{source, target} {
		if ids[i], err = client.ClusterMyID(ctx).Result(); err != nil {
			return err
		}
	}
	err = errors.Join(target.Do(ctx, "cluster", "setslot", slot, "importing", ids[0]).Err(), source.Do(ctx, "cluster", "setslot", slot, "migrating", ids[1]).Err())
	if err != nil {
		return err
	}
	host, port, _ := strings.Cut(target.Options().Addr, ":")
	for {
		keys, err := source.ClusterGetKeysInSlot(ctx, int(slot), 1).Result()
		if err != nil {
			return err
		}
		if len(keys) == 0 {
			break
		}
		if err := source.Migrate(ctx, host, port, keys[0], 0, 5*time.Second).Err(); err != nil {
			return fmt.Errorf("migrate %s: %w", keys[0], err)
		}
		time.Sleep(50 * time.Millisecond) // requests meet keys at both servers
	}
	for i := range 3 {
		if err := c.Client(i).Do(ctx, "cluster", "setslot", slot, "node", ids[1]).Err(); err != nil {
			return err
		}
	}
	return nil
}
