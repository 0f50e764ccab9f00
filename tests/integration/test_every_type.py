"""Every type of the contract, with its odd values, through a whole move: equal as text in both databases."""

import psycopg
import pytest
from moving import move, rows
from support import drop_database, make_database

VALUES = {
 "smallint": [None,"-32768","32767","0","1","-1","7","100"],
 "integer": [None,"-2147483648","2147483647","0","1","-1","7","100"],
 "bigint": [None,"-9223372036854775808","9223372036854775807","0","1","-1","9007199254740993","100"],
 "real": [None,"-3.4028235e38","3.4028235e38","0","-0","NaN","Infinity","1e-45","1.1","-Infinity"],
 "double precision": [None,"-1.7976931348623157e308","1.7976931348623157e308","0","-0","NaN","Infinity","5e-324","0.1","-Infinity"],
 "numeric": [None,"NaN","Infinity","-Infinity","1.50","1.5","0","0.000","1e-300","-"+"9"*60+"."+"1"*40,"9"*1000],
 "numeric(12,2)": [None,"NaN","9999999999.99","-9999999999.99","0","0.01","1.5","-0.01"],
 "numeric(38,10)": [None,"NaN","9999999999999999999999999999.9999999999","-1","0","0.0000000001","1.5","3"],
 "numeric(50,20)": [None,"NaN","1","-1","0","0.00000000000000000001","1.5","3"],
 "money": [None,"-92233720368547758.08","92233720368547758.07","0","1.5","-1","0.01","1234567.89"],
 "boolean": [None,"t","f","t","t","f","f","t"],
 "text": [None,"","a"," ",'ü\n\r\t"\'\\',"NULL","\\N","😀"*10,"%s {0}","x"*10000],
 "varchar(10)": [None,"","a"," ",'ü\n"\'\\',"NULL","\\N","😀"*10],
 "char(5)": [None,"","a","ab","abcde","ü","\\N","😀"],
 '"char"': [None,"","a","Z","0"," ","\\","\\377"],
 "name": [None,"","a","x"*63,"NULL","ü","\\N","😀"],
 "bytea": [None,"\\x","\\x00","\\xff00","\\x5c","\\x6162","\\x00112233445566","\\x"+"ab"*5000],
 "date": [None,"infinity","-infinity","4713-01-01 BC","5874897-12-31","1970-01-01","0001-12-31 BC","2024-02-29"],
 "time": [None,"00:00","24:00","23:59:59.999999","12:00:00.000001","01:02:03","12:30","00:00:01"],
 "time(3)": [None,"00:00","24:00","23:59:59.999","12:00:00.001","01:02:03","12:30","00:00:01"],
 "timetz": [None,"00:00+00","24:00-15:59","23:59:59.999999+15:59","12:00:00.000001+01","01:02:03-08","12:30+05:30","00:00:01+00"],
 "timestamp": [None,"infinity","-infinity","4713-01-01 00:00:00 BC","294276-12-31 23:59:59.999999","1970-01-01","2016-12-31 23:59:60","2024-02-29 12:34:56.789012"],
 "timestamp(0)": [None,"infinity","-infinity","4713-01-01 00:00:00 BC","294276-12-31 23:59:59","1970-01-01","2016-12-31 23:59:60","2024-02-29 12:34:56"],
 "timestamptz": [None,"infinity","-infinity","4713-01-01 00:00:00+00 BC","294276-12-31 23:59:59.999999+00","1970-01-01+00","2016-12-31 23:59:60+00","2024-02-29 12:34:56.789012+05:30"],
 "interval": [None,"0","1 year 2 mons -3 days 04:05:06.789","-178000000 years","1 mon","-00:00:00.000001","100000 hours","1 day"],
 "uuid": [None,"00000000-0000-0000-0000-000000000000","ffffffff-ffff-ffff-ffff-ffffffffffff","a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11","A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A12","12345678-1234-5678-1234-567812345678","00000000-0000-0000-0000-000000000001","10000000-0000-0000-0000-000000000000"],
 "json": [None,'{"a":1,"a":2}',"[1e400, 123456789012345678901234567890.1234567890123]",'"\\u00fc"',"null",' {"b" : 1 } ',"{}",'"x"',"true"],
 "jsonb": [None,'{"a":1,"a":2}',"[1e400, 123456789012345678901234567890.1234567890123]",'"\\u00fc"',"null",'{"b" : 1 }',"{}",'"x"'],
 "inet": [None,"1.2.3.4","1.2.3.4/8","::1","fe80::1/64","0.0.0.0/0","255.255.255.255","10.0.0.1/32"],
 "cidr": [None,"1.2.3.4/32","10.0.0.0/8","::1/128","fe80::/64","0.0.0.0/0","192.168.0.0/16","10.1.0.0/16"],
 "macaddr": [None,"08:00:2b:01:02:03","00:00:00:00:00:00","ff:ff:ff:ff:ff:ff","01:02:03:04:05:06","0a:0b:0c:0d:0e:0f","10:20:30:40:50:60","aa:bb:cc:dd:ee:ff"],
 "macaddr8": [None,"08:00:2b:01:02:03:04:05","00:00:00:00:00:00:00:00","ff:ff:ff:ff:ff:ff:ff:ff","01:02:03:04:05:06:07:08","0a:0b:0c:0d:0e:0f:01:02","10:20:30:40:50:60:70:80","08:00:2b:01:02:03"],
 "bit(3)": [None,"000","111","101","010","001","100","110"],
 "bit varying(5)": [None,"","1","11111","10101","0","00","110"],
 "tsvector": [None,"","a b c","'it''s':1A","a:1,2,3B","ü","x:16383","a"],
 "tsquery": [None,"a & b","!a","a <-> b","'it''s'","a:*","a | (b & c)","ü"],
 "point": [None,"(0,0)","(1.1,-2.2)","(NaN,Infinity)","(1e308,1e-308)","(0.1,0.2)","(-0,0)","(3,4)"],
 "line": [None,"{1,2,3}","{0,1,0}","{1.1,-2.2,0}","{1,0,0}","{-1,1,0}","{2,3,4}","{0.1,0.2,0.3}"],
 "lseg": [None,"[(0,0),(1,1)]","[(0,0),(0,0)]","[(1.1,2),(3,4)]","[(0,1),(1,0)]","[(9,9),(1,1)]","[(0,0),(2,2)]","[(0,0),(-1,-1)]"],
 "box": [None,"(1,1),(0,0)","(0,0),(0,0)","(1.1,2.2),(0,0)","(5,5),(1,1)","(2,2),(1,1)","(3,3),(1,1)","(4,4),(1,1)"],
 "path": [None,"[(0,0),(1,1)]","((0,0),(1,1))","[(0,0)]","((1.1,2))","[(0,0),(1,1),(2,0)]","((0,0),(1,1),(2,0))","[(9,9)]"],
 "polygon": [None,"((0,0),(1,1),(2,0))","((0,0))","((1.1,2.2),(3,4))","((0,0),(1,0),(1,1),(0,1))","((5,5),(1,1))","((9,9))","((0,0),(2,2))"],
 "circle": [None,"<(0,0),1>","<(1.1,2),0>","<(0,0),0>","<(1,1),5>","<(-1,-1),2>","<(0.1,0.2),0.3>","<(9,9),9>"],
 "int4range": [None,"empty","[1,5)","(,)","[1,)","(,5)","[3,3]","[-5,5)"],
 "numrange": [None,"empty","[1.10,5)","(,)","[1,)","(,5]","(3,4)","[-5,5)"],
 "tstzrange": [None,"empty",'["2020-01-01 00:00:00+00","2021-01-01 00:00:00+00")',"(,)",'["2020-01-01 00:00:00+00",)',"(,infinity)","[-infinity,infinity]",'["2020-01-01","2020-01-01"]'],
 "int4multirange": [None,"{}","{[1,5)}","{[1,2),[5,6)}","{(,)}","{[1,)}","{(,5)}","{[3,3]}"],
 "mood": [None,"sad","ok","happy","it's","","ü","sad"],
 "posint": [None,"1","2","3","4","5","6","7"],
 "addr": [None,'("a b",1)',"(,)",'("",0)','("its ""q""",-1)',"(ü,5)",'("(x,y)",7)',"(NULL,3)"],
 "integer[]": [None,"{}","{1,NULL,3}","{{1,2},{3,4}}","[0:1]={5,6}","{NULL}","[-1:0][2:3]={{1,2},{3,4}}","{2147483647}"],
 "text[]": [None,"{}",'{a,NULL,"NULL",""}','{{"a b","c,d"},{"\\"q\\"","\\\\"}}',"[0:1]={x,y}",'{"ü"}','{" "}',"{😀}"],
 "numeric(12,2)[]": [None,"{}","{1.50,NULL}","{NaN}","{0}","{-1}","{{1,2},{3,4}}","{9}"],
 "mood[]": [None,"{}","{sad,NULL}","{{ok,happy}}","{ü}",'{""}',"{ok}","{sad,sad}"],
 "timestamptz[]": [None,"{}","{infinity,NULL}",'{"4713-01-01 00:00:00+00 BC"}','{"2020-01-01 00:00:00+00"}',"{-infinity}",'{"294276-12-31 23:59:59+00"}',"{NULL}"],
 "jsonb[]": [None,"{}",'{"{\\"a\\": 1}",NULL}',"{null}",'{"1e400"}','{"\\"x\\""}',"{true}",'{"[]"}'],
 "bytea[]": [None,"{}",'{"\\\\x00ff",NULL}','{"\\\\x"}','{"\\\\x5c"}',"{NULL}",'{"\\\\x01","\\\\x02"}','{"\\\\xab"}'],
 "addr[]": [None,"{}",'{"(a,1)",NULL}','{"(,)"}','{"(\\"x y\\",2)"}','{"(ü,3)"}',"{NULL}",'{"(a,1)","(b,2)"}'],
 "oid": [None,"0","4294967295","1","2147483648","5","6","7"],
 "regclass": [None,"pg_class","pg_type","pg_proc","-","pg_attribute","pg_index","information_schema.tables"],
 "regtype": [None,"integer","text","numeric","-","bigint","boolean","timestamp with time zone"],
 "regproc": [None,"boolin","boolout","-","textin","textout","int4in","int8in"],
 "regprocedure": [None,"boolin(cstring)","length(text)","-","textin(cstring)","abs(integer)","int4in(cstring)","int8in(cstring)"],
 "regoper": [None,"0","0","0","0","0","0","0"],
 "regoperator": [None,"+(integer,integer)","-(integer,integer)","0","=(text,text)","0","0","0"],
 "regrole": [None,"keyhaul","-","keyhaul","-","-","-","-"],
 "regnamespace": [None,"pg_catalog","public","-","information_schema","-","-","-"],
 "regconfig": [None,"english","simple","german","-","french","dutch","danish"],
 "regdictionary": [None,"english_stem","simple","-","german_stem","-","-","-"],
 "regcollation": [None,'"C"','"POSIX"',"-",'"default"',"-","-","-"],
 "pg_lsn": [None,"0/0","FFFFFFFF/FFFFFFFF","16/B374D848","0/1","1/0","2/3","4/5"],
 "jsonpath": [None,"$","$.a","$[*]","strict $.a","$.a ? (@ > 1)","$.*","$.b"],
}  # fmt: skip

OWN = {"mood", "posint", "addr"}
TYPES = (
    "create type mood as enum ('sad', 'ok', 'happy', 'it''s', '', 'ü')",
    "create domain posint as integer check (value > 0)",
    "create type addr as (street text, n integer)",
)


def literal(value, pg_type):
    return "null" if value is None else "'" + value.replace("'", "''") + "'::" + pg_type


def fill(uri, values):
    """Create and fill the table: one column for each type, named c0, c1 and so on."""
    columns = ", ".join(f"c{number} {pg_type}" for number, pg_type in enumerate(values))
    longest = max(map(len, values.values()))
    with psycopg.connect(uri, autocommit=True) as conn:
        for statement in TYPES:
            conn.execute(statement)
        conn.execute(f"create table alltypes (id int primary key, {columns})")
        for row in range(longest):
            cells = [literal(v[row] if row < len(v) else None, t) for t, v in values.items()]
            conn.execute(f"insert into alltypes values ({row}, {', '.join(cells)})")


@pytest.fixture(scope="module", params=[18, 16])
def filled(request):
    server = request.getfixturevalue("server" if request.param == 18 else "server16")
    uris = [make_database(server, name) for name in ("types_source", "types_target")]
    fill(uris[0], VALUES)
    yield uris
    for uri in uris:
        drop_database(server, uri)


@pytest.mark.parametrize("loader", ["copy", "adbc"])
@pytest.mark.parametrize("reader", ["connectorx", "adbc"])
def test_every_value_of_every_type_arrives_unchanged(filled, reader, loader):
    source, target = filled
    with psycopg.connect(target, autocommit=True) as conn:
        conn.execute(
            "drop table if exists public.alltypes; drop type if exists public.mood, public.addr; drop domain if exists public.posint"
        )
    report = move(filled, "alltypes", reader=reader, loader=loader)
    assert report.counts.loaded == max(map(len, VALUES.values()))
    different = []
    for number, pg_type in enumerate(VALUES):
        query = f"select id, c{number}::text, pg_typeof(c{number})::text from public.alltypes order by id"
        if rows(source, query) != rows(target, query):
            different.append(pg_type)
    assert different == []
    modifiers = "select attname, format_type(atttypid, atttypmod), attnotnull from pg_attribute where attrelid = 'public.alltypes'::regclass and attnum > 0"
    assert rows(source, modifiers) == rows(target, modifiers)
