-- is_position(point): whether a point is a position on Earth, x = longitude and y = latitude, both in degrees.
--
-- The domain `place` checks every position that is written with it, so no table can hold one that is none.
-- NaN and the infinities are outside of BETWEEN and so are refused, too.
CREATE OR REPLACE FUNCTION is_position(p point) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN p[0] BETWEEN -180 AND 180 AND p[1] BETWEEN -90 AND 90;
COMMENT ON FUNCTION is_position(point) IS 'Whether a point is a longitude and a latitude in degrees; NaN is not.';
