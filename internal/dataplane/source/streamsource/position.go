package streamsource

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"

	"github.com/levada-io/levada/stream"
)

// saved is a saved position: the stream's checkpoint, and which stream it belongs to.
type saved struct {
	// Version is that of the checkpoint.
	Version int    `json:"version"`
	Stream  string `json:"stream"`
	// Query is a hash of the parameters; empty if there are none.
	Query  string `json:"query,omitempty"`
	Seq    uint64 `json:"seq"`
	Token  []byte `json:"token,omitempty"`
	Digest string `json:"digest"`
	Bytes  uint64 `json:"bytes"`
	Bad    uint64 `json:"bad,omitempty"`
	Done   bool   `json:"done,omitempty"`
}

func (c *Config) queryHash() string {
	if len(c.Query) == 0 {
		return ""
	}
	sum := sha256.Sum256(c.Query)
	return hex.EncodeToString(sum[:12])
}

// encode makes what is saved of what was acknowledged.
func (r *Reader) encode(uint64) ([]byte, error) {
	r.mu.Lock()
	at := r.acked
	r.mu.Unlock()
	return json.Marshal(saved{
		Version: stream.CheckpointVersion, Stream: r.cfg.Stream, Query: r.cfg.queryHash(),
		Seq: at.Seq, Token: at.Token, Digest: at.Digest.String(), Bytes: at.Bytes, Bad: at.Bad, Done: at.Done,
	})
}

// parse returns the checkpoint of a saved position, if it belongs to this stream.
func (c *Config) parse(b []byte) (at stream.Checkpoint, err error) {
	if b == nil {
		return at, nil
	}
	var s saved
	if err := json.Unmarshal(b, &s); err != nil {
		return at, fmt.Errorf("saved position of stream %s: %q is none of this source: %w", c.Stream, b, err)
	}
	if s.Version > stream.CheckpointVersion {
		return at, fmt.Errorf("saved position of stream %s: %w (version %d, this one knows %d)", c.Stream, stream.ErrNewer, s.Version, stream.CheckpointVersion)
	}
	if s.Stream != c.Stream || s.Query != c.queryHash() {
		return at, fmt.Errorf("partition %s: %w: it was read from stream %q, or with another query, up to record %d; "+
			"go back to those, or give source.stream.partition a new name to read the stream from its start", c.Partition, stream.ErrQueryChanged, s.Stream, s.Seq)
	}
	digest, err := hex.DecodeString(s.Digest)
	if err != nil || len(digest) != len(at.Digest) {
		return at, fmt.Errorf("saved position of stream %s: %q is not a digest", c.Stream, s.Digest)
	}
	at = stream.Checkpoint{Seq: s.Seq, Token: s.Token, Bytes: s.Bytes, Bad: s.Bad, Done: s.Done}
	copy(at.Digest[:], digest)
	return at, nil
}
