package redislink

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"github.com/redis/go-redis/v9"
)

// Check returns an error if a server cannot keep buffers: one that is too old, a replica, or one that evicts keys. What it does not promise is logged in one
// line for each risk, and returned.
func (l *Link) Check(ctx context.Context) (risks []string, err error) {
	cluster, ok := l.Client.(*redis.ClusterClient)
	if !ok {
		s, err := look(ctx, l.Client)
		if err == nil {
			err = s.unfit(l.URL)
		}
		if err != nil {
			return nil, err
		}
		return s.warn(l, l.URL), nil
	}
	var mu sync.Mutex // the servers are asked concurrently
	said := map[string]bool{}
	err = cluster.ForEachMaster(ctx, func(ctx context.Context, c *redis.Client) error {
		s, err := look(ctx, c)
		if err == nil {
			err = s.unfit(c.Options().Addr)
		}
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		if text := strings.Join(s.risks(), "\n"); !said[text] { // once for servers that are alike
			said[text] = true
			risks = append(risks, s.warn(l, c.Options().Addr)...)
		}
		return nil
	})
	return risks, err
}

// Kept is how a server keeps a key.
type Kept struct {
	// File says that the server writes an append-only file.
	File bool
	// Replicas follow it now.
	Replicas int
}

// Kept asks the server of a key how it keeps it.
func (l *Link) Kept(ctx context.Context, key string) (k Kept, err error) {
	var c redis.Cmdable = l.Client
	if cluster, ok := l.Client.(*redis.ClusterClient); ok {
		if c, err = cluster.MasterForKey(ctx, key); err != nil {
			return k, l.Note(err)
		}
	}
	s, err := look(ctx, c)
	return Kept{s.aof, s.replicas}, l.Note(err)
}

// server is what one says about itself.
type server struct {
	version, role, master string
	policy                string
	maxMemory             int64
	aof                   bool
	fsync                 string // appendfsync; empty if this user must not ask
	replicas              int
	minReplicas           int
	diskFailing           bool
}

func look(ctx context.Context, c redis.Cmdable) (s server, err error) {
	info, err := c.Info(ctx).Result()
	if err != nil {
		return s, Explain(err)
	}
	if field(info, "loading") == "1" { // INFO answers then, and says less
		return s, Explain(errLoading)
	}
	s = server{
		version: field(info, "redis_version"), role: field(info, "role"), master: field(info, "master_host") + ":" + field(info, "master_port"),
		policy: field(info, "maxmemory_policy"), aof: field(info, "aof_enabled") == "1",
		diskFailing: field(info, "aof_last_write_status") == "err" || field(info, "rdb_last_bgsave_status") == "err",
	}
	s.maxMemory, _ = strconv.ParseInt(field(info, "maxmemory"), 10, 64)
	s.replicas, _ = strconv.Atoi(field(info, "connected_slaves"))
	// Services that run Redis for others often do not let users ask.
	if settings, err := c.ConfigGet(ctx, "appendfsync").Result(); err == nil {
		s.fsync = settings["appendfsync"]
	}
	if settings, err := c.ConfigGet(ctx, "min-replicas-to-write").Result(); err == nil {
		s.minReplicas, _ = strconv.Atoi(settings["min-replicas-to-write"])
	}
	return s, nil
}

var errLoading = errors.New("LOADING Redis is loading the dataset in memory")

// field is the value of a line of INFO.
func field(info, name string) string {
	for line := range strings.Lines(info) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

func (s server) unfit(url string) error {
	var major int
	if _, err := fmt.Sscanf(s.version, "%d.", &major); err == nil && major < 7 {
		return fmt.Errorf("%w: the server at %s is Redis %s, and Levada needs 7.0 or later: upgrade the server", ErrUnfit, url, s.version)
	}
	if s.role == "slave" {
		return fmt.Errorf("%w: %s is a replica of %s: give the address of the master, or the Sentinels as redis+sentinel://HOST/MASTER", ErrUnfit, url, s.master)
	}
	if strings.HasPrefix(s.policy, "allkeys") && s.maxMemory > 0 {
		return fmt.Errorf("%w: the server at %s has maxmemory-policy %s and would remove messages that nobody has read when its memory is full: set maxmemory-policy noeviction", ErrUnfit, url, s.policy)
	}
	return nil
}

// risks are what the server does not promise, with what to do about it.
func (s server) risks() (risks []string) {
	switch {
	case !s.aof:
		risks = append(risks, "appendonly is off: messages in flight and positions are lost when the server ends or crashes. Set appendonly yes and appendfsync always")
	case s.fsync == "everysec":
		risks = append(risks, "appendfsync is everysec: up to two seconds of acknowledged messages are lost when its machine loses power. Set appendfsync always to lose none")
	case s.fsync == "no":
		risks = append(risks, "appendfsync is no: acknowledged messages that the system has not written yet are lost when its machine loses power. Set appendfsync always to lose none")
	case s.fsync == "":
		risks = append(risks, "its appendfsync cannot be asked (CONFIG GET is denied): only appendfsync always loses no acknowledged message when its machine loses power")
	}
	if s.replicas > 0 {
		risks = append(risks, "replication is asynchronous: a failover can lose the messages that were acknowledged last. min-replicas-to-write bounds for how long, and does not prevent it")
	}
	if strings.HasPrefix(s.policy, "allkeys") {
		risks = append(risks, "maxmemory-policy is "+s.policy+": with a maxmemory the server would remove messages that nobody has read. Set maxmemory-policy noeviction")
	}
	if s.diskFailing {
		risks = append(risks, "its last write to its disk failed: look at its log and its disk")
	}
	return risks
}

func (s server) warn(l *Link, url string) []string {
	risks := s.risks()
	for _, risk := range risks {
		l.log.Warn("Redis server does not promise durability: "+risk, "url", url)
	}
	return risks
}
