package jetstream

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/levada-io/levada/internal/dataplane/natslink"
)

const (
	// smallPayload is a max_payload below which blocks are stored in many pieces.
	smallPayload = 128 << 10
	// nearLimit is the share of a limit from which on it is near.
	nearLimit = 0.8
	// settingsWait is how long servers have for an answer about their settings, after the first one.
	settingsWait = 250 * time.Millisecond
)

// server is what a NATS server says of itself.
type server struct {
	Name    string   `json:"name"`
	Host    string   `json:"host"`
	Cluster string   `json:"cluster"`
	Tags    []string `json:"tags"`

	SyncAlways   bool
	SyncInterval time.Duration
}

// askServers asks all servers for their settings. Only servers whose system account exports the subject to the account of this user answer; the others have no responders, or
// refuse it.
func askServers(ctx context.Context, conn *nats.Conn) (all []server) {
	inbox := conn.NewInbox()
	sub, err := conn.SubscribeSync(inbox)
	if err != nil {
		return nil
	}
	defer func() { _ = sub.Unsubscribe() }() // of a connection that may be closed already
	if err := conn.PublishRequest(natslink.ServerSettings, inbox, []byte(`{"config":true}`)); err != nil {
		return nil
	}
	for {
		wait, cancel := context.WithTimeout(ctx, settingsWait)
		m, err := sub.NextMsgWithContext(wait)
		cancel()
		if err != nil {
			return all
		}
		var answer struct {
			Server server `json:"server"`
			Data   struct {
				Disabled bool `json:"disabled"`
				Config   struct {
					SyncAlways   bool          `json:"sync_always"`
					SyncInterval time.Duration `json:"sync_interval"`
				} `json:"config"`
			} `json:"data"`
		}
		if json.Unmarshal(m.Data, &answer) != nil || answer.Server.Name == "" || answer.Data.Disabled {
			continue
		}
		answer.Server.SyncAlways, answer.Server.SyncInterval = answer.Data.Config.SyncAlways, answer.Data.Config.SyncInterval
		all = append(all, answer.Server)
	}
}

// risksOf are what servers do not promise, with what to do about it. cluster is the one that streams are in.
func risksOf(all []server, cluster string) (risks []string) {
	all = slices.DeleteFunc(slices.Clone(all), func(s server) bool { return s.Cluster != cluster })
	slices.SortFunc(all, func(a, b server) int { return cmp.Compare(a.Name, b.Name) })
	var late []string
	var interval time.Duration
	for _, s := range all {
		if !s.SyncAlways {
			late, interval = append(late, s.Name), max(interval, s.SyncInterval)
		}
	}
	if len(late) > 0 {
		risks = append(risks, fmt.Sprintf("%s: sync_interval is %v, so that what was acknowledged in that time is lost when the machine loses power. Set jetstream { sync_interval: always }", strings.Join(late, ", "), interval))
	}
	if len(all) < 2 {
		return risks
	}
	if host := all[0].Host; !unspecified(host) && !slices.ContainsFunc(all, func(s server) bool { return s.Host != host }) {
		risks = append(risks, fmt.Sprintf("all %d servers of the cluster are on the host %s, so that its loss stops everything, and that of its disk loses all replicas. Put each on a machine of its own", len(all), host))
	}
	for _, tag := range all[0].Tags {
		domain, _, _ := strings.Cut(tag, ":")
		if slices.Contains([]string{"az", "zone", "rack"}, strings.ToLower(domain)) && !slices.ContainsFunc(all, func(s server) bool { return !slices.Contains(s.Tags, tag) }) {
			risks = append(risks, fmt.Sprintf("all %d servers of the cluster have the tag %s, so that its loss stops everything. Spread them, and set unique_tag: %q", len(all), tag, domain+":"))
		}
	}
	return risks
}

func unspecified(host string) bool {
	ip := net.ParseIP(host)
	return host == "" || ip != nil && ip.IsUnspecified()
}

// limitRisks are the limits of an account that are nearly used up.
func limitRisks(info *jetstream.AccountInfo) (risks []string) {
	near := func(what string, used, limit int64, size bool) {
		if limit <= 0 || float64(used) < nearLimit*float64(limit) {
			return
		}
		figure := func(n int64) string {
			if size {
				return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
			}
			return fmt.Sprint(n)
		}
		risks = append(risks, fmt.Sprintf("the account has %s of its %s %s: raise the limit, or writers wait when it is reached", figure(used), figure(limit), what))
	}
	tier := func(suffix string, t jetstream.Tier) {
		near("streams"+suffix, int64(t.Streams), int64(t.Limits.MaxStreams), false)
		near("consumers"+suffix, int64(t.Consumers), int64(t.Limits.MaxConsumers), false)
		near("of storage"+suffix, int64(t.Store), t.Limits.MaxStore, true)
		near("of memory"+suffix, int64(t.Memory), t.Limits.MaxMemory, true)
	}
	tier("", info.Tier)
	for name, t := range info.Tiers {
		tier(" with "+name, t)
	}
	slices.Sort(risks)
	return risks
}

// warnOfRisks logs a line for each thing in which a server elsewhere, or its cluster, falls short of what Levada promises on it.
func warnOfRisks(ctx context.Context, conn *nats.Conn, js jetstream.JetStream, url string, log *slog.Logger) {
	var risks []string
	if have := conn.MaxPayload(); have < smallPayload {
		risks = append(risks, fmt.Sprintf("max_payload is %d, so that blocks are stored in many pieces, which is slow. Set it to 1048576", have))
	}
	ask, cancel := context.WithTimeout(ctx, requestsTimeout)
	defer cancel()
	info, err := js.AccountInfo(ask)
	if err == nil {
		risks = append(risks, limitRisks(info)...)
	} else if !errors.Is(err, context.Canceled) {
		log.Debug("limits of the account are not known", "error", err)
	}
	for _, risk := range append(risks, risksOf(askServers(ask, conn), conn.ConnectedClusterName())...) {
		log.Warn("NATS broker has a risk: "+risk, "url", url)
	}
}
