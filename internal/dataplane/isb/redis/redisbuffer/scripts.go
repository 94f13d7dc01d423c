package redisbuffer

import (
	_ "embed"
	"math/rand/v2"

	"github.com/redis/go-redis/v9"
)

// What must happen together is a script. All of a script's keys are in one slot.
var (
	//go:embed open.lua
	openLua string
	//go:embed append.lua
	appendLua string
	//go:embed trim.lua
	trimLua string
	//go:embed bounds.lua
	boundsLua string
	//go:embed claim.lua
	claimLua string
	//go:embed save.lua
	saveLua string
	//go:embed replace.lua
	replaceLua string
	//go:embed damage.lua
	damageLua string

	openScript    = redis.NewScript(openLua)
	appendScript  = redis.NewScript(appendLua)
	trimScript    = redis.NewScript(trimLua)
	boundsScript  = redis.NewScript(boundsLua)
	claimScript   = redis.NewScript(claimLua)
	saveScript    = redis.NewScript(saveLua)
	replaceScript = redis.NewScript(replaceLua)
	damageScript  = redis.NewScript(damageLua)
)

func random() uint64 { return rand.Uint64() }
